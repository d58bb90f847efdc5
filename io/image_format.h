// What an image file says about itself before it is decoded: whether it is whole, its size, how it is meant to be
// turned, and what its colours are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace squareq::image_format {

inline constexpr int kMaxSide = 16384;
inline constexpr std::int64_t kMaxPixels = 200'000'000;

enum class Format : std::uint8_t { kPng, kJpeg, kBmp, kWebp };

struct Header {
  Format format = Format::kPng;
  int width = 0;  // as stored, before it is turned
  int height = 0;
  int orientation = 1;  // of EXIF: 1 to 8, 1 where the file names none
};

// CRC-32 of PNG (ISO 3309): reflected polynomial 0xEDB88320, all ones before, complemented after.
std::uint32_t crc32(std::span<const std::byte> data);

// Checks that `data` is a complete PNG (every chunk's checksum included), JPEG, BMP or WebP whose colours can be read
// as RGB, and whose size is within the limits. Throws FormatError naming `name`.
Header check(std::span<const std::byte> data, const std::string& name);

}  // namespace squareq::image_format
