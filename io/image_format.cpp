#include "io/image_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstring>
#include <string_view>

#include <webp/decode.h>

#include "kernels/base/error.h"

namespace squareq::image_format {
namespace {

using Bytes = std::span<const std::byte>;

enum class Order : std::uint8_t { kBig, kLittle };

// Unsigned integer of `size` bytes at `offset`; the caller has checked that it lies inside.
std::uint32_t number(Bytes data, std::size_t offset, std::size_t size, Order order) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < size; ++i) {
    const std::size_t at = order == Order::kBig ? i : size - 1 - i;
    value = value << 8U | std::to_integer<std::uint32_t>(data[offset + at]);
  }
  return value;
}

int side(std::uint32_t pixels) { return static_cast<int>(std::min<std::uint32_t>(pixels, INT_MAX)); }

bool starts_with(Bytes data, std::string_view text) {
  return data.size() >= text.size() && std::memcmp(data.data(), text.data(), text.size()) == 0;
}

[[noreturn]] void truncated(const std::string& name, std::string_view format) {
  throw FormatError(
      {name, fmt::format("a {} file that ends too early", format), "a complete picture", "copy or download it again"});
}

// `tiff` is a TIFF file as EXIF has it; tag 0x0112 of its first directory is the orientation. Anything malformed counts
// as no orientation, since a damaged note about a picture does not damage the picture.
int exif_orientation(Bytes tiff) {
  constexpr std::size_t kEntry = 12;
  if (!starts_with(tiff, "II") && !starts_with(tiff, "MM")) return 1;
  const Order order = starts_with(tiff, "MM") ? Order::kBig : Order::kLittle;
  if (tiff.size() < 8) return 1;
  const std::size_t directory = number(tiff, 4, 4, order);
  if (directory + 2 > tiff.size()) return 1;
  const std::size_t entries = number(tiff, directory, 2, order);
  for (std::size_t i = 0; i < entries; ++i) {
    const std::size_t at = directory + 2 + i * kEntry;
    if (at + kEntry > tiff.size()) return 1;
    constexpr std::uint32_t kOrientationTag = 0x0112;
    if (number(tiff, at, 2, order) != kOrientationTag) continue;
    const std::uint32_t value = number(tiff, at + 8, 2, order);
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

Header check_png(Bytes data, const std::string& name) {
  if (data.size() < 33 || !starts_with(data.subspan(12), "IHDR")) truncated(name, "PNG");
  Header header{.format = Format::kPng,
                .width = side(number(data, 16, 4, Order::kBig)),
                .height = side(number(data, 20, 4, Order::kBig))};
  for (std::size_t at = 8;;) {
    if (data.size() - at < 12) truncated(name, "PNG");
    const std::size_t length = number(data, at, 4, Order::kBig);
    if (data.size() - at - 12 < length) truncated(name, "PNG");
    const Bytes chunk = data.subspan(at + 4, 4 + length);  // its type and content
    const std::uint32_t found = crc32(chunk);
    const std::uint32_t expected = number(data, at + 8 + length, 4, Order::kBig);
    if (found != expected) {
      throw FormatError({fmt::format("{}: PNG chunk at offset {}", name, at), fmt::format("CRC {:08x}", found),
                         fmt::format("CRC {:08x}", expected), "the file is damaged; copy or download it again"});
    }
    if (starts_with(chunk, "eXIf")) header.orientation = exif_orientation(chunk.subspan(4));
    if (starts_with(chunk, "IEND")) return header;
    at += 12 + length;
  }
}

// Walks the markers of ITU-T T.81 to the end-of-image marker: entropy-coded data holds 0xFF only before 0x00 or a
// restart marker, so any other marker in it is real.
Header check_jpeg(Bytes data, const std::string& name) {
  constexpr std::uint32_t kEndOfImage = 0xD9;
  constexpr std::uint32_t kApp1 = 0xE1;
  Header header{.format = Format::kJpeg};
  std::size_t at = 2;
  while (at + 2 <= data.size()) {
    const std::uint32_t marker = number(data, at + 1, 1, Order::kBig);
    const bool stands_alone = marker <= 0x01 || (marker >= 0xD0 && marker <= 0xD7);
    if (number(data, at, 1, Order::kBig) != 0xFF || marker == 0xFF) {
      const void* next = std::memchr(data.data() + at + 1, 0xFF, data.size() - at - 1);
      if (next == nullptr) break;
      at = static_cast<std::size_t>(static_cast<const std::byte*>(next) - data.data());
      continue;
    }
    if (marker == kEndOfImage) return header;
    if (stands_alone) {
      at += 2;
      continue;
    }
    if (at + 4 > data.size()) break;
    const std::size_t length = number(data, at + 2, 2, Order::kBig);
    if (length < 2 || at + 2 + length > data.size()) break;
    const Bytes content = data.subspan(at + 4, length - 2);
    if (marker == kApp1 && starts_with(content, {"Exif\0\0", 6})) {
      header.orientation = exif_orientation(content.subspan(6));
    }
    // 0xC4, 0xC8 and 0xCC between the frame markers are tables and reserved.
    const bool is_frame = marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
    if (is_frame && content.size() > 5) {
      header.height = side(number(content, 1, 2, Order::kBig));
      header.width = side(number(content, 3, 2, Order::kBig));
      if (std::to_integer<int>(content[5]) == 4) {
        throw FormatError({name, "a JPEG with four colour channels (CMYK)", "RGB or grey",
                           "convert it to RGB in an image editor, with its colour profile"});
      }
    }
    at += 2 + length;
  }
  truncated(name, "JPEG");
}

// stb reads zeros beyond the end of a BMP, so its size is checked here: rows are padded to four bytes.
Header check_bmp(Bytes data, const std::string& name) {
  if (data.size() < 34) truncated(name, "BMP");
  const std::uint64_t pixels = number(data, 10, 4, Order::kLittle);
  const bool is_os2 = number(data, 14, 4, Order::kLittle) == 12;
  const std::size_t field = is_os2 ? 2 : 4;
  const std::uint64_t width = number(data, 18, field, Order::kLittle);
  std::uint64_t height = number(data, 18 + field, field, Order::kLittle);
  if (height > 0x7FFF'FFFFU) height = 0x1'0000'0000U - height;  // negative: rows from the top
  const std::uint64_t bits = number(data, is_os2 ? 24 : 28, 2, Order::kLittle);
  if (width > kMaxSide || height > kMaxSide || bits > 32) {
    throw FormatError({name, fmt::format("a BMP of {} x {} pixels, {} bits each", width, height, bits),
                       fmt::format("at most {} pixels a side, 32 bits", kMaxSide), ""});
  }
  constexpr std::uint32_t kBitFields = 3;
  const std::uint32_t compression = is_os2 ? 0 : number(data, 30, 4, Order::kLittle);
  if (compression != 0 && compression != kBitFields) {
    throw FormatError({name, "a compressed BMP", "a BMP without compression", "convert it to PNG"});
  }
  const std::uint64_t stride = (width * bits + 31) / 32 * 4;
  if (pixels + stride * height > data.size()) truncated(name, "BMP");
  return {.format = Format::kBmp, .width = static_cast<int>(width), .height = static_cast<int>(height)};
}

// RIFF container (Google, "WebP Container Specification"): chunks of a name, a length and content padded to two bytes.
Header check_webp(Bytes data, const std::string& name) {
  constexpr std::size_t kChunkHead = 8;
  const std::uint64_t riff = std::uint64_t{number(data, 4, 4, Order::kLittle)} + kChunkHead;
  if (riff > data.size()) truncated(name, "WebP");
  WebPBitstreamFeatures features;
  if (WebPGetFeatures(reinterpret_cast<const std::uint8_t*>(data.data()), data.size(), &features) != VP8_STATUS_OK) {
    truncated(name, "WebP");
  }
  if (features.has_animation != 0) {
    throw FormatError({name, "an animated WebP", "a still picture", "save one of its pictures as PNG"});
  }
  Header header{.format = Format::kWebp, .width = features.width, .height = features.height};
  for (std::uint64_t at = 12; at + kChunkHead <= riff;) {
    const std::uint64_t length = number(data, at + 4, 4, Order::kLittle);
    if (at + kChunkHead + length > riff) truncated(name, "WebP");
    Bytes content = data.subspan(at + kChunkHead, length);
    if (starts_with(data.subspan(at), "EXIF")) {
      if (starts_with(content, {"Exif\0\0", 6})) content = content.subspan(6);
      header.orientation = exif_orientation(content);
    }
    at += kChunkHead + length + length % 2;
  }
  return header;
}

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value & 1U) != 0 ? 0xEDB88320U ^ (value >> 1U) : value >> 1U;
    table[i] = value;
  }
  return table;
}

}  // namespace

std::uint32_t crc32(Bytes data) {
  static constexpr std::array<std::uint32_t, 256> kTable = make_crc_table();
  std::uint32_t crc = 0xFFFF'FFFFU;
  for (const std::byte byte : data) crc = kTable[(crc ^ std::to_integer<std::uint32_t>(byte)) & 0xFFU] ^ (crc >> 8U);
  return ~crc;
}

Header check(Bytes data, const std::string& name) {
  const auto header = [&]() -> Header {
    if (starts_with(data, "\x89PNG\r\n\x1a\n")) return check_png(data, name);
    if (starts_with(data, "\xFF\xD8\xFF")) return check_jpeg(data, name);
    if (starts_with(data, "BM")) return check_bmp(data, name);
    if (data.size() >= 12 && starts_with(data, "RIFF") && starts_with(data.subspan(8), "WEBP")) {
      return check_webp(data, name);
    }
    std::string start;
    for (const std::byte byte : data.first(std::min<std::size_t>(data.size(), 8))) {
      start += fmt::format(" {:02x}", std::to_integer<unsigned>(byte));
    }
    throw FormatError({name, data.empty() ? "an empty file" : "a file that starts with bytes" + start,
                       "a PNG, JPEG, WebP or BMP picture", "convert it to PNG"});
  }();
  const std::int64_t pixels = std::int64_t{header.width} * header.height;
  if (header.width < 1 || header.height < 1 || std::max(header.width, header.height) > kMaxSide ||
      pixels > kMaxPixels) {
    throw FormatError(
        {name, fmt::format("a picture of {} x {} pixels", header.width, header.height),
         fmt::format("1 to {} pixels a side and at most {} million in all", kMaxSide, kMaxPixels / 1'000'000),
         "make it smaller"});
  }
  return header;
}

}  // namespace squareq::image_format
