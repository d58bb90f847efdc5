#include "engine/dataset.h"

#include <algorithm>
#include <set>

#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using squareq::test::contains;
using squareq::test::message_of;
using squareq::test::TempDir;
using squareq::test::write_file;

namespace {

namespace fs = std::filesystem;

void add_example(const TempDir& folder, const std::string& picture, const std::string& caption) {
  write_file(folder.file(picture), "not decoded when listed");
  write_file(folder.file(fs::path(picture).replace_extension(".txt").string()), caption);
}

}  // namespace

TEST_CASE("dataset: pictures are listed by name, with captions") {
  const TempDir folder;
  add_example(folder, "b.JPG", "a bus");
  add_example(folder, "a.png", "\xEF\xBB\xBF  a caf\xC3\xA9 \r\n");
  add_example(folder, "Z.jpeg", "");
  add_example(folder, "c.Bmp", "two\nlines");
  add_example(folder, ".hidden.png", "x");
  write_file(folder.file("notes.txt"), "\xFF");
  write_file(folder.file("model.safetensors"), "");
  fs::create_directory(folder.path() / "sub.png");
  fs::create_directory_symlink(folder.path(), folder.path() / "circle");
  fs::create_symlink("loop.png", folder.path() / "loop.png");
  fs::create_symlink("nowhere", folder.path() / "broken.png");
  const std::vector<Example> examples = read_dataset(folder.path().string());
  REQUIRE(examples.size() == 4);
  CHECK(examples[0].image == folder.file("Z.jpeg"));
  CHECK(examples[0].caption.empty());
  CHECK(examples[1].image == folder.file("a.png"));
  CHECK(examples[1].caption == "a caf\xC3\xA9");
  CHECK(examples[2].caption == "a bus");
  CHECK(examples[3].caption == "two\nlines");
}

TEST_CASE("dataset: folders that are missing, empty or no folder") {
  const TempDir folder;
  const auto message = [&](const std::string& path) { return message_of<FileError>([&] { read_dataset(path); }); };
  CHECK(contains(message(folder.file("none")), folder.file("none")));
  CHECK(contains(message(folder.path().string()), "found no picture, expected files ending in .png"));
  write_file(folder.file("a.txt"), "a caption alone");
  CHECK(contains(message(folder.path().string()), "found no picture"));
  CHECK(contains(message(folder.file("a.txt")), "expected a folder of pictures and captions"));
}

TEST_CASE("dataset: a missing caption names picture and file") {
  const TempDir folder;
  write_file(folder.file("a.png"), "");
  const auto message = [&] { return message_of<FileError>([&] { read_dataset(folder.path().string()); }); };
  CHECK(contains(message(), folder.file("a.png") + ": found no caption file, expected a.txt"));
  fs::create_directory(folder.path() / "a.txt");
  CHECK(contains(message(), "found no caption file"));
}

TEST_CASE("dataset: captions must be UTF-8") {
  const auto message = [](const std::string& caption) {
    const TempDir folder;
    add_example(folder, "a.png", caption);
    return message_of<FormatError>([&] { read_dataset(folder.path().string()); });
  };
  CHECK(contains(message("caf\xE9 au lait"), "a.txt: found byte 0xE9 at offset 3, which is not UTF-8"));
  CHECK(contains(message("\xFF\xFE"
                         "a\0"),
                 "byte 0xFF at offset 0"));
  CHECK(contains(message("ab\x80"), "offset 2"));
  CHECK(contains(message("ab\xC3"), "offset 2"));            // cut off
  CHECK(contains(message("\xC0\xAF"), "offset 0"));          // longer than needed
  CHECK(contains(message("\xE0\x80\xAF"), "offset 0"));      // longer than needed
  CHECK(contains(message("\xF0\x80\x80\xAF"), "offset 0"));  // longer than needed
  CHECK(contains(message("x\xED\xA0\x80"), "offset 1"));     // surrogate
  CHECK(contains(message("\xF4\x90\x80\x80"), "offset 0"));  // above U+10FFFF
  CHECK(contains(message("\xF0\x9F\x98"), "offset 0"));      // cut off
  CHECK(message("\xF0\x9F\x98\x80 \xE6\x97\xA5\xEF\xBF\xBD").empty());
}

TEST_CASE("dataset: captions that are too large, or shared") {
  const TempDir folder;
  add_example(folder, "a.png", std::string(static_cast<std::size_t>(kCaptionLimit), 'a'));
  CHECK(read_dataset(folder.path().string()).size() == 1);
  add_example(folder, "a.png", std::string(static_cast<std::size_t>(kCaptionLimit) + 1, 'a'));
  const auto message = [&] { return message_of<FormatError>([&] { read_dataset(folder.path().string()); }); };
  CHECK(contains(message(), "found a caption of 65537 bytes, expected at most 65536 bytes"));
  add_example(folder, "a.png", "a");
  add_example(folder, "a.jpg", "a");
  CHECK(contains(message(), "'a.jpg' and 'a.png', which share the caption 'a.txt'"));
}

TEST_CASE("dataset: pictures come in the wanted size") {
  const TempDir folder;
  Image image{6, 3, {}};
  for (int i = 0; i < 6 * 3 * 3; ++i) image.rgb.push_back(static_cast<std::uint8_t>(i * 4));
  write_png(folder.file("a.png"), image);
  write_file(folder.file("a.txt"), "");
  const Image picture = load_picture(read_dataset(folder.path().string())[0], {32, 16});
  CHECK(picture.width == 32);
  CHECK(picture.height == 16);
  CHECK(picture.rgb.size() == 32 * 16 * 3);

  SECTION("and one that cannot be decoded is named") {
    write_file(folder.file("a.png"), "\x89PNG\r\n\x1a\n and then nothing");
    const auto load = [&] { load_picture(read_dataset(folder.path().string())[0], {32, 16}); };
    CHECK(contains(message_of<FormatError>(load), folder.file("a.png")));
  }
}

TEST_CASE("dataset: each epoch draws every example once, in an order of its own") {
  constexpr std::uint32_t kCount = 16;
  std::vector<std::vector<std::uint32_t>> epochs;
  for (std::uint64_t epoch = 0; epoch < 20; ++epoch) {
    std::vector<std::uint32_t> order;
    for (std::uint64_t i = 0; i < kCount; ++i) order.push_back(sample_index(7, epoch * kCount + i, kCount));
    CHECK(std::set<std::uint32_t>(order.begin(), order.end()).size() == kCount);
    CHECK(*std::max_element(order.begin(), order.end()) == kCount - 1);
    CHECK(std::find(epochs.begin(), epochs.end(), order) == epochs.end());
    epochs.push_back(order);
  }
  CHECK(sample_index(7, 5, kCount) == epochs[0][5]);
  std::vector<std::uint32_t> other_seed;
  for (std::uint64_t i = 0; i < kCount; ++i) other_seed.push_back(sample_index(8, i, kCount));
  CHECK(other_seed != epochs[0]);
  CHECK(sample_index(1, 12345, 1) == 0);
  CHECK_THROWS_AS(sample_index(1, 0, 0), std::logic_error);
}

TEST_CASE("dataset: every example is equally likely at every place") {
  constexpr std::uint32_t kCount = 4;
  int found[kCount][kCount] = {};
  constexpr std::uint64_t kEpochs = 4000;
  for (std::uint64_t i = 0; i < kEpochs * kCount; ++i) ++found[i % kCount][sample_index(3, i, kCount)];
  for (const auto& place : found) {
    for (const int n : place) CHECK(std::abs(n - 1000) < 150);  // standard deviation 27
  }
}

TEST_CASE("dataset: the order is the documented one") {  // numbers from a Python version written from docs/data.md
  const auto order = [](std::uint64_t seed, std::uint64_t epoch, std::uint32_t count) {
    std::vector<std::uint32_t> indices;
    for (std::uint32_t i = 0; i < count; ++i) indices.push_back(sample_index(seed, epoch * count + i, count));
    return indices;
  };
  CHECK(order(42, 0, 16) == std::vector<std::uint32_t>{9, 11, 4, 13, 6, 15, 3, 5, 1, 8, 14, 10, 2, 12, 0, 7});
  CHECK(order(42, 1, 16) == std::vector<std::uint32_t>{15, 14, 0, 1, 4, 12, 9, 13, 11, 7, 10, 8, 6, 2, 5, 3});
  CHECK(order(UINT64_MAX, 7, 5) == std::vector<std::uint32_t>{1, 4, 2, 3, 0});
}
