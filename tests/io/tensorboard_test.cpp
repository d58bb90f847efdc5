#include "io/tensorboard.h"

#include <cstring>

#include "io/image.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using test::contains;

namespace {

std::uint32_t crc_of(std::string_view text) { return crc32c(std::as_bytes(std::span(text))); }

// The messages of a file, by the lengths in front of them.
std::vector<std::string> records(const std::string& bytes) {
  std::vector<std::string> found;
  std::size_t at = 0;
  while (at < bytes.size()) {
    REQUIRE(bytes.size() - at >= 16);
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data() + at, 8);
    REQUIRE(length <= bytes.size() - at - 16);
    found.push_back(bytes.substr(at + 12, length));
    at += 16 + length;
  }
  return found;
}

std::string png() {
  const test::TempDir dir;
  write_png(dir.file("p.png"), {.width = 3, .height = 2, .rgb = std::vector<std::uint8_t>(18, 100)});
  return test::read_file(dir.file("p.png"));
}

}  // namespace

TEST_CASE("tensorboard: CRC-32C of published examples") {
  // RFC 3720, B.4.
  CHECK(crc_of("123456789") == 0xE3069283U);
  CHECK(crc_of(std::string(32, '\0')) == 0x8A9136AAU);
  CHECK(crc_of(std::string(32, '\xff')) == 0x62A8AB43U);
  CHECK(crc_of("") == 0U);
}

TEST_CASE("tensorboard: the bytes of a scalar") {
  const test::TempDir dir;
  const std::string path = dir.file("events.out.tfevents.test");
  EventWriter(path, 0, false).scalar(300, "loss", 0.5);
  const std::vector<std::string> found = records(test::read_file(path));
  REQUIRE(found.size() == 2);
  // wall_time 0, step 0, file_version
  CHECK(found[0] == std::string("\x09\0\0\0\0\0\0\0\0\x10\0\x1a\x0d", 13) + "brain.Event:2");
  // wall_time 0, step 300, summary { value { tag, simple_value 0.5 } }
  CHECK(found[1] == std::string("\x09\0\0\0\0\0\0\0\0\x10\xac\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15\0\0\0\x3f", 27));
}

TEST_CASE("tensorboard: an event file goes on where a state was saved") {
  const test::TempDir dir;
  const auto write = [](EventWriter& writer, std::int64_t first, std::int64_t last) {
    for (std::int64_t step = first; step <= last; ++step) writer.scalar(step, "loss", 1.0 / static_cast<double>(step));
    writer.image(last, "preview/0", png());
  };
  EventWriter whole(dir.file("whole"), 0, false);
  write(whole, 1, 5);
  write(whole, 6, 9);

  std::uint64_t saved = 0;
  {
    EventWriter first(dir.file("parts"), 0, false);
    write(first, 1, 5);
    saved = first.position();
    write(first, 6, 7);  // lost with the process
  }
  CHECK(saved < test::read_file(dir.file("parts")).size());
  EventWriter second(dir.file("parts"), saved, false);
  write(second, 6, 9);
  CHECK(second.position() == whole.position());
  CHECK(test::read_file(dir.file("parts")) == test::read_file(dir.file("whole")));

  // From the beginning.
  EventWriter again(dir.file("parts"), 0, false);
  CHECK(records(test::read_file(dir.file("parts"))).size() == 1);
}

TEST_CASE("tensorboard: what cannot be gone on with is refused") {
  const test::TempDir dir;
  test::write_file(dir.file("short"), "12345");
  CHECK(contains(test::message_of<FormatError>([&] { EventWriter(dir.file("short"), 6); }), "at least the 6"));
  CHECK(test::read_file(dir.file("short")) == "12345");
  CHECK_THROWS_AS(EventWriter(dir.file("none"), 6), FileError);
  CHECK_THROWS_AS(EventWriter(dir.file("no/folder"), 0), FileError);
  EventWriter writer(dir.file("e"), 0);
  const std::uint64_t before = writer.position();
  CHECK_THROWS_AS(writer.image(1, "x", "GIF89a"), FormatError);
  CHECK_THROWS_AS(writer.image(1, "x", png().substr(0, 20)), FormatError);
  CHECK(writer.position() == before);
}
