#include "io/file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "io/mapped_file.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using test::contains;

namespace {

std::size_t entries(const std::filesystem::path& folder) {
  std::size_t n = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder)) ++n;
  return n;
}

}  // namespace

TEST_CASE("an atomic file appears when it is committed") {
  const test::TempDir dir;
  const std::string path = dir.file("a.txt");
  {
    AtomicFile file(path);
    file.write("hello ");
    file.write("world");
    file.write_at(0, std::as_bytes(std::span("J", 1)));
    CHECK(!std::filesystem::exists(path));
    file.commit();
  }
  CHECK(read_text(path) == "Jello world");
  struct stat status {};
  REQUIRE(stat(path.c_str(), &status) == 0);
  CHECK((status.st_mode & 0400U) != 0);
  CHECK(entries(dir.path()) == 1);
}

TEST_CASE("an atomic file that is dropped leaves nothing, and what was there stays") {
  const test::TempDir dir;
  write_atomically(dir.file("a.txt"), "old");
  {
    AtomicFile file(dir.file("a.txt"));
    file.write("half of the n");
  }
  CHECK(read_text(dir.file("a.txt")) == "old");
  CHECK(entries(dir.path()) == 1);
  write_atomically(dir.file("a.txt"), "");
  CHECK(read_text(dir.file("a.txt")).empty());
}

TEST_CASE("a move takes the unfinished file along") {
  const test::TempDir dir;
  AtomicFile first(dir.file("a.txt"));
  first.write("1");
  AtomicFile second(std::move(first));
  second.write("2");
  second.commit();
  CHECK(read_text(dir.file("a.txt")) == "12");
}

TEST_CASE("files that cannot be read or written say so") {
  const test::TempDir dir;
  const std::string missing = test::message_of<FileError>([&] { read_text(dir.file("none")); });
  CHECK(contains(missing, dir.file("none")));
  CHECK(contains(missing, "No such file"));
  CHECK(contains(test::message_of<FileError>([&] { MappedFile(dir.path().string()); }), "a folder"));
  CHECK(contains(test::message_of<FileError>([&] { AtomicFile(dir.path().string()); }), "a folder"));
  const std::string no_folder = test::message_of<FileError>([&] { write_atomically(dir.file("x/y"), "text"); });
  CHECK(contains(no_folder, dir.file("x/y")));
  CHECK(contains(no_folder, "folder exists"));
  REQUIRE(mkfifo(dir.file("pipe").c_str(), 0600) == 0);
  CHECK(contains(test::message_of<FileError>([&] { MappedFile(dir.file("pipe")); }), "no regular file"));
}

TEST_CASE("a mapped file that is cut reads as zeros, in any thread, and says so") {
  constexpr std::size_t kPages = 4096 * 4;
  const test::TempDir dir;
  test::write_file(dir.file("a"), std::string(kPages, 'x'));
  test::write_file(dir.file("b"), std::string(kPages, 'y'));
  const MappedFile a(dir.file("a")), b(dir.file("b"));
  std::filesystem::resize_file(dir.file("a"), 4096);
  CHECK_NOTHROW(a.check_whole());
  std::byte last{1};
  std::thread([&] { last = a.bytes()[kPages - 1]; }).join();
  CHECK(last == std::byte{0});
  CHECK(a.bytes()[0] == std::byte{'x'});
  CHECK(contains(test::message_of<FileError>([&] { a.check_whole(); }), dir.file("a")));
  CHECK(b.bytes()[kPages - 1] == std::byte{'y'});
  CHECK_NOTHROW(b.check_whole());
}

TEST_CASE("a mapped file moves and may be empty") {
  const test::TempDir dir;
  test::write_file(dir.file("empty"), "");
  test::write_file(dir.file("full"), "abc");
  MappedFile file(dir.file("empty"));
  CHECK(file.bytes().empty());
  file = MappedFile(dir.file("full"));
  REQUIRE(file.bytes().size() == 3);
  CHECK(file.bytes()[2] == std::byte{'c'});
  const MappedFile moved(std::move(file));
  CHECK(moved.bytes().size() == 3);
  CHECK(moved.path() == dir.file("full"));
}
