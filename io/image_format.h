// What stb does not look at: whether an image file is whole, how it is meant to be turned, and what its colours are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace squareq::image_format {

inline constexpr int kMaxSide = 16384;
inline constexpr std::int64_t kMaxPixels = 200'000'000;

// CRC-32 of PNG (ISO 3309): reflected polynomial 0xEDB88320, all ones before, complemented after.
std::uint32_t crc32(std::span<const std::byte> data);

// Checks that `data` is a complete PNG (every chunk's checksum included), JPEG or BMP whose colours can be read as RGB,
// and returns its EXIF orientation: 1 to 8, 1 where the file names none. Throws FormatError naming `name`.
int check_and_orientation(std::span<const std::byte> data, const std::string& name);

}  // namespace squareq::image_format
