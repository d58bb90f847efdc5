#include "io/image.h"

#include <array>
#include <cmath>

#include "io/image_format.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/support.h"

namespace squareq {
namespace {

using test::contains;
using test::TempDir;

using Pixel = std::array<int, 3>;
constexpr Pixel kRed{255, 0, 0};
constexpr Pixel kGreen{0, 255, 0};
constexpr Pixel kBlue{0, 0, 255};
constexpr Pixel kWhite{255, 255, 255};

std::string data_file(std::string_view name) { return std::string(TEST_DATA) + "/images/" + std::string(name); }

Image decode(const std::string& bytes) { return decode_image(std::as_bytes(std::span(bytes)), "picture"); }

ImageSize size_of(const std::string& bytes) { return image_size(std::as_bytes(std::span(bytes)), "picture"); }

std::string refusal(const std::string& bytes) {
  return test::message_of<FormatError>([&] { decode(bytes); });
}

Pixel pixel(const Image& image, int x, int y) {
  const auto at = static_cast<std::size_t>(3 * (y * image.width + x));
  return {image.rgb.at(at), image.rgb.at(at + 1), image.rgb.at(at + 2)};
}

// The nearest of the corners' colours, since JPEG is not exact.
Pixel plain(Pixel colour) {
  for (int& part : colour) part = part > 127 ? 255 : 0;
  return colour;
}

using Corners = std::array<Pixel, 4>;  // top left, top right, bottom left, bottom right

Corners corners(const Image& image) {
  const int right = image.width - 2;
  const int bottom = image.height - 2;
  return {plain(pixel(image, 1, 1)), plain(pixel(image, right, 1)), plain(pixel(image, 1, bottom)),
          plain(pixel(image, right, bottom))};
}

std::string number(unsigned value, int bytes, bool big) {
  std::string out;
  for (int i = 0; i < bytes; ++i) {
    const int shift = 8 * (big ? bytes - 1 - i : i);
    out += static_cast<char>(value >> static_cast<unsigned>(shift) & 0xFFU);
  }
  return out;
}

// A TIFF file with two entries, of which the second is the orientation.
std::string tiff(unsigned orientation, bool big) {
  std::string out = big ? "MM" : "II";
  out += number(42, 2, big) + number(8, 4, big) + number(2, 2, big);
  out += number(0x010F, 2, big) + number(2, 2, big) + number(3, 4, big) + std::string("ab\0\0", 4);
  out +=
      number(0x0112, 2, big) + number(3, 2, big) + number(1, 4, big) + number(orientation, 2, big) + number(0, 2, big);
  return out + number(0, 4, big);
}

std::string jpeg_with_exif(const std::string& exif) {
  std::string jpeg = test::read_file(data_file("corners.jpg"));
  const std::string content = std::string("Exif\0\0", 6) + exif;
  return jpeg.insert(2, "\xFF\xE1" + number(static_cast<unsigned>(content.size() + 2), 2, true) + content);
}

std::string png_chunk(const std::string& type_and_content) {
  const unsigned crc = image_format::crc32(std::as_bytes(std::span(type_and_content)));
  return number(static_cast<unsigned>(type_and_content.size() - 4), 4, true) + type_and_content + number(crc, 4, true);
}

Image numbered(int width, int height) {
  Image image{width, height, {}};
  for (int i = 0; i < 3 * width * height; ++i) image.rgb.push_back(static_cast<std::uint8_t>(i * 37 % 251));
  return image;
}

}  // namespace

TEST_CASE("JPEG, progressive JPEG, WebP, BMP and paletted PNG are read", "[image]") {
  for (const char* name : {"corners.jpg", "progressive.jpg", "corners.webp", "corners.bmp"}) {
    INFO(name);
    const Image image = read_image(data_file(name));
    CHECK(image.width == 32);
    CHECK(image.height == 16);
    CHECK(corners(image) == Corners{kRed, kGreen, kBlue, kWhite});
    const ImageSize size = size_of(test::read_file(data_file(name)));
    CHECK(size.width == 32);
    CHECK(size.height == 16);
  }
  CHECK(corners(read_image(data_file("palette.png"))) == Corners{kWhite, kGreen, kBlue, kWhite});  // red is transparent
}

TEST_CASE("Grey pictures become three equal channels", "[image]") {
  const Image image = read_image(data_file("grey.jpg"));
  const Pixel red = pixel(image, 1, 1);
  CHECK(std::abs(red[0] - 76) <= 3);  // 0.299 * 255
  CHECK(red[1] == red[0]);
  CHECK(red[2] == red[0]);
}

TEST_CASE("16-bit samples are rounded to 8 bits", "[image]") {
  CHECK(read_image(data_file("grey16.png")).rgb == std::vector<std::uint8_t>{0, 0, 0, 1, 1, 1, 2, 2, 2, 255, 255, 255});
}

TEST_CASE("Transparency is composited on white", "[image]") {
  CHECK(read_image(data_file("rgba.png")).rgb == std::vector<std::uint8_t>{200, 100, 0, 244, 224, 204});
  CHECK(read_image(data_file("grey_alpha.png")).rgb ==
        std::vector<std::uint8_t>{10, 10, 10, 255, 255, 255, 127, 127, 127});
  CHECK(read_image(data_file("rgba16.png")).rgb == std::vector<std::uint8_t>{255, 0, 128, 127, 255, 128});
  CHECK(read_image(data_file("rgba.webp")).rgb == std::vector<std::uint8_t>{200, 100, 0, 244, 224, 204});
  CHECK(read_image(data_file("rgba.png")).alpha.empty());
}

TEST_CASE("Transparency is kept where it is wanted", "[image]") {
  for (const char* name : {"rgba.png", "rgba.webp"}) {
    const Image image = read_image(data_file(name), Transparency::kKept);
    CHECK(image.rgb == std::vector<std::uint8_t>{200, 100, 0, 200, 100, 0});
    CHECK(image.alpha == std::vector<std::uint8_t>{255, 51});
  }
  CHECK(read_image(data_file("grey_alpha.png"), Transparency::kKept).alpha == std::vector<std::uint8_t>{255, 0, 128});
  CHECK(read_image(data_file("rgba16.png"), Transparency::kKept).alpha == std::vector<std::uint8_t>{255, 128});
  CHECK(read_image(data_file("corners.jpg"), Transparency::kKept).alpha.empty());
}

TEST_CASE("EXIF orientation turns the picture", "[image]") {
  // What the viewer sees when the stored picture is red, green; blue, white.
  const std::array<Corners, 8> expected{{{kRed, kGreen, kBlue, kWhite},
                                         {kGreen, kRed, kWhite, kBlue},
                                         {kWhite, kBlue, kGreen, kRed},
                                         {kBlue, kWhite, kRed, kGreen},
                                         {kRed, kBlue, kGreen, kWhite},
                                         {kBlue, kRed, kWhite, kGreen},
                                         {kWhite, kGreen, kBlue, kRed},
                                         {kGreen, kWhite, kRed, kBlue}}};
  for (unsigned orientation = 1; orientation <= 8; ++orientation) {
    for (const bool big : {false, true}) {
      INFO("orientation " << orientation << (big ? " big endian" : " little endian"));
      const Image image = decode(jpeg_with_exif(tiff(orientation, big)));
      CHECK(image.width == (orientation <= 4 ? 32 : 16));
      CHECK(image.height == (orientation <= 4 ? 16 : 32));
      CHECK(corners(image) == expected[orientation - 1]);
    }
  }
  // Lossless, so that every pixel counts: 90 degrees clockwise, from a PNG that says so in eXIf.
  const TempDir folder;
  write_png(folder.file("a.png"), {3, 2, {1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6}});
  const Image turned = decode(test::read_file(folder.file("a.png")).insert(33, png_chunk("eXIf" + tiff(6, true))));
  CHECK(turned.width == 2);
  CHECK(turned.rgb == std::vector<std::uint8_t>{4, 4, 4, 1, 1, 1, 5, 5, 5, 2, 2, 2, 6, 6, 6, 3, 3, 3});
  CHECK(corners(read_image(data_file("turned.webp"))) == expected[5]);
  CHECK(size_of(test::read_file(data_file("turned.webp"))).height == 32);
}

TEST_CASE("Malformed EXIF is no orientation", "[image]") {
  const Corners upright{kRed, kGreen, kBlue, kWhite};
  CHECK(corners(decode(jpeg_with_exif(tiff(0, false)))) == upright);
  CHECK(corners(decode(jpeg_with_exif(tiff(9, false)))) == upright);
  CHECK(corners(decode(jpeg_with_exif(""))) == upright);
  CHECK(corners(decode(jpeg_with_exif(std::string("II*\0\xFF\xFF\xFF\xFF", 8)))) == upright);
  for (std::size_t length = 0; length < 38; ++length) {
    CHECK(decode(jpeg_with_exif(tiff(3, true).substr(0, length))).width == 32);
  }
}

TEST_CASE("Pictures that are damaged, foreign or too large are refused by name", "[image]") {
  const TempDir folder;
  test::write_file(folder.file("empty.png"), "");
  test::write_file(folder.file("text.png"), "hello, this is no picture");
  for (const char* name : {"empty.png", "text.png"}) {
    const std::string message = test::message_of<FormatError>([&] { read_image(folder.file(name)); });
    CHECK(contains(message, folder.file(name)));
    CHECK(contains(message, "PNG, JPEG, WebP or BMP"));
  }
  CHECK(contains(test::message_of<FileError>([&] { read_image(folder.file("missing.png")); }), "missing.png"));
  CHECK(contains(test::message_of<FormatError>([&] { read_image(data_file("cmyk.jpg")); }), "CMYK"));

  for (const char* name :
       {"corners.jpg", "progressive.jpg", "corners.webp", "rgba.webp", "corners.bmp", "palette.png", "rgba16.png"}) {
    const std::string whole = test::read_file(data_file(name));
    for (std::size_t length = 0; length < whole.size(); ++length) {
      INFO(name << " cut to " << length);
      REQUIRE(contains(refusal(whole.substr(0, length)), "picture"));
    }
  }
  CHECK(contains(test::message_of<FormatError>([&] { read_image(data_file("animated.webp")); }), "an animated WebP"));
  std::string damaged = test::read_file(data_file("corners.jpg"));
  const std::size_t scan = damaged.find("\xFF\xDA");
  for (std::size_t at = scan + 14; at + 2 < damaged.size(); ++at) damaged[at] = '\x55';
  CHECK(contains(refusal(damaged), "cannot be decoded"));
  std::string bare = test::read_file(data_file("corners.jpg"));
  for (auto at = bare.find("\xFF\xDB"); at != std::string::npos; at = bare.find("\xFF\xDB")) {
    bare.erase(at, 2U + static_cast<unsigned char>(bare[at + 2]) * 256U + static_cast<unsigned char>(bare[at + 3]));
  }
  CHECK(contains(refusal(bare), "Quantization table"));
  std::string flipped = test::read_file(data_file("palette.png"));
  flipped[flipped.size() / 2] ^= 1;
  CHECK(contains(refusal(flipped), "CRC"));

  std::string huge = test::read_file(data_file("rgba.png"));
  std::string header = "IHDR" + number(16384, 4, true) + number(16384, 4, true) + std::string("\x08\x06\0\0\0", 5);
  CHECK(contains(refusal(huge.replace(8, 25, png_chunk(header))), "16384 x 16384"));
  header = "IHDR" + number(16385, 4, true) + number(1, 4, true) + std::string("\x08\x06\0\0\0", 5);
  CHECK_FALSE(refusal(huge.replace(8, 25, png_chunk(header))).empty());
}

TEST_CASE("A PNG that is written is read back, and carries its text", "[image]") {
  const TempDir folder;
  const std::string path = folder.file("out.png");
  const Image image = numbered(13, 7);
  write_png(path, image, {{"prompt", "a frog"}, {"author", "J\xC3\xB6rg"}});
  const Image back = read_image(path);
  CHECK(back.width == 13);
  CHECK(back.height == 7);
  CHECK(back.rgb == image.rgb);
  const std::string bytes = test::read_file(path);
  CHECK(contains(bytes, std::string("tEXtprompt\0a frog", 17)));
  CHECK(contains(bytes, std::string("iTXtauthor\0\0\0\0\0J\xC3\xB6rg", 20)));

  const auto refused = [&](const std::string& key, const std::string& value) {
    return test::message_of<FormatError>([&] { write_png(path, image, {{key, value}}); });
  };
  CHECK(contains(refused("", "x"), "keyword"));
  CHECK(contains(refused(std::string(80, 'k'), "x"), "keyword"));
  CHECK(contains(refused("key", std::string("a\0b", 3)), "zero bytes"));
  CHECK_THROWS_AS(write_png(folder.file("no/such/folder.png"), image), FileError);
  CHECK_THROWS_AS(write_png(path, Image{2, 2, {1, 2, 3}}), FormatError);
}

TEST_CASE("Resizing keeps what it should", "[image]") {
  SECTION("same size: the same picture") {
    const Image image = numbered(17, 9);
    CHECK(resize_and_crop(image, 17, 9).rgb == image.rgb);
  }
  SECTION("one colour stays one colour") {
    Image image{50, 31, std::vector<std::uint8_t>(3 * 50 * 31, 77)};
    for (const auto& [width, height] : {std::pair{16, 16}, {64, 48}, {1, 1}, {50, 3}}) {
      const Image out = resize_and_crop(image, width, height);
      CHECK(out.rgb == std::vector<std::uint8_t>(static_cast<std::size_t>(3 * width * height), 77));
    }
  }
  SECTION("the middle is cut out") {
    Image image{6, 2, {}};
    for (int y = 0; y < 2; ++y) {
      for (const int value : {0, 0, 10, 20, 0, 0})
        image.rgb.insert(image.rgb.end(), 3, static_cast<std::uint8_t>(value));
    }
    const Image out = resize_and_crop(image, 2, 2);
    CHECK(pixel(out, 0, 0) == Pixel{10, 10, 10});
    CHECK(pixel(out, 1, 1) == Pixel{20, 20, 20});
  }
  SECTION("a fine pattern averages out instead of aliasing") {
    Image image{64, 64, {}};
    for (int i = 0; i < 64 * 64; ++i) image.rgb.insert(image.rgb.end(), 3, i % 2 == 0 ? 0 : 254);
    const Image out = resize_and_crop(image, 8, 8);
    for (int x = 1; x < 7; ++x) CHECK(std::abs(pixel(out, x, 4)[0] - 127) <= 2);
  }
  SECTION("a ramp stays a ramp when enlarged") {
    Image image{8, 8, {}};
    for (int i = 0; i < 64; ++i) image.rgb.insert(image.rgb.end(), 3, static_cast<std::uint8_t>(i % 8 * 30));
    const Image out = resize_and_crop(image, 16, 16);
    for (int x = 4; x < 12; ++x)
      CHECK(std::abs(pixel(out, x, 8)[1] - (15 * x - 8)) <= 1);  // 30 * ((x + 0.5) / 2 - 0.5)
  }
  CHECK_THROWS_AS(resize_and_crop(Image{}, 4, 4), FormatError);
}

TEST_CASE("Pictures are set side by side", "[image]") {
  const Image left{1, 2, {1, 1, 1, 2, 2, 2}};
  const Image right{2, 2, {3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6}};
  const Image both = hconcat(left, right);
  CHECK(both.width == 3);
  CHECK(both.rgb == std::vector<std::uint8_t>{1, 1, 1, 3, 3, 3, 4, 4, 4, 2, 2, 2, 5, 5, 5, 6, 6, 6});
  CHECK_THROWS_AS(hconcat(left, Image{1, 1, {0, 0, 0}}), FormatError);
}

TEST_CASE("Mirrored pictures", "[image]") {
  CHECK(mirrored({3, 1, {1, 1, 1, 2, 2, 2, 3, 3, 3}, {7, 8, 9}}).rgb ==
        std::vector<std::uint8_t>{3, 3, 3, 2, 2, 2, 1, 1, 1});
  CHECK(mirrored({3, 1, {1, 1, 1, 2, 2, 2, 3, 3, 3}, {7, 8, 9}}).alpha == std::vector<std::uint8_t>{9, 8, 7});
}

}  // namespace squareq
