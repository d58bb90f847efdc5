#include "engine/contact_sheet.h"

#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;

namespace {

std::array<int, 3> pixel(const Image& image, int x, int y) {
  const std::size_t at =
      3 * (static_cast<std::size_t>(y) * static_cast<std::size_t>(image.width) + static_cast<std::size_t>(x));
  return {image.rgb[at], image.rgb[at + 1], image.rgb[at + 2]};
}

// A picture of one colour.
std::string plain(const test::TempDir& dir, const std::string& name, int width, int height,
                  std::array<std::uint8_t, 3> colour) {
  Image image{width, height, {}};
  for (int i = 0; i < width * height; ++i) image.rgb.insert(image.rgb.end(), colour.begin(), colour.end());
  write_png(dir.file(name), image);
  return dir.file(name);
}

}  // namespace

TEST_CASE("contact sheet: pictures stand in rows and columns, whole and in proportion") {
  const test::TempDir dir;
  const std::string red = plain(dir, "red.png", 40, 40, {255, 0, 0});
  const std::string wide = plain(dir, "wide.png", 80, 40, {0, 255, 0});
  const Image sheet = contact_sheet({{"", {red, wide}}, {"", {"", red}}}, 20);
  CHECK(sheet.width == 4 + 2 * 24);
  CHECK(sheet.height == 4 + 2 * 24);
  CHECK(pixel(sheet, 4, 4) == std::array<int, 3>{255, 0, 0});
  CHECK(pixel(sheet, 23, 23) == std::array<int, 3>{255, 0, 0});
  // The wide one is 20 x 10, centred.
  const std::array<int, 3> background = pixel(sheet, 0, 0);
  CHECK(pixel(sheet, 28, 8) == background);
  CHECK(pixel(sheet, 28, 9) == std::array<int, 3>{0, 255, 0});
  CHECK(pixel(sheet, 47, 18) == std::array<int, 3>{0, 255, 0});
  CHECK(pixel(sheet, 47, 19) == background);
  // An empty place.
  CHECK(pixel(sheet, 10, 38) == background);
  CHECK(pixel(sheet, 38, 38) == std::array<int, 3>{255, 0, 0});
}

TEST_CASE("contact sheet: labels stand before the rows") {
  const test::TempDir dir;
  const std::string red = plain(dir, "red.png", 40, 40, {255, 0, 0});
  const Image sheet = contact_sheet({{"1", {red}}, {"10", {red}}}, 20);
  CHECK(sheet.width == 4 + 2 * 6 + 24);
  CHECK(pixel(sheet, 16, 4) == std::array<int, 3>{255, 0, 0});
  // The foot of the 1 is three dots wide.
  const auto ink = [&](int x, int y) { return pixel(sheet, x, y)[0] > 200; };
  const int foot = 4 + (20 - 7) / 2 + 6;
  CHECK(!ink(4, foot));
  CHECK(ink(5, foot));
  CHECK(ink(7, foot));
  CHECK(!ink(8, foot));
  // Only the second row has a second digit.
  CHECK(!ink(11, foot));
  CHECK(ink(11, foot + 24));
}

TEST_CASE("contact sheet: a growing one keeps its earlier rows") {
  const test::TempDir dir;
  const std::string red = plain(dir, "red.png", 40, 40, {255, 0, 0});
  const std::string green = plain(dir, "green.png", 40, 40, {0, 255, 0});
  const Image small = contact_sheet({{"100", {red, green}}}, 32);
  const Image grown = contact_sheet({{"100", {red, green}}, {"200", {green, red}}}, 32);
  REQUIRE(grown.width == small.width);
  CHECK(std::equal(small.rgb.begin(), small.rgb.end() - 3 * 4 * small.width, grown.rgb.begin()));
}

TEST_CASE("contact sheet: what cannot be shown is refused") {
  const test::TempDir dir;
  CHECK_THROWS_AS(contact_sheet({{"1", {dir.file("none.png")}}}, 32), FileError);
  test::write_file(dir.file("bad.png"), "no picture");
  CHECK_THROWS_AS(contact_sheet({{"1", {dir.file("bad.png")}}}, 32), FormatError);
  CHECK_THROWS_AS(contact_sheet({}, 8), ConfigError);
  CHECK_THROWS_AS(contact_sheet(std::vector<SheetRow>(1000), 512), ConfigError);
}
