// The decoders behind io/image.h. Each is given a file that image_format::check has found whole, with the size that it
// found, and throws FormatError naming `name` where the picture cannot be decoded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/image_format.h"

namespace squareq::image_codecs {

// Rows from the top, `channels` bytes a pixel: RGB or RGBA.
struct Pixels {
  int channels = 3;
  std::vector<std::uint8_t> samples;
};

Pixels decode_jpeg(std::span<const std::byte> data, const image_format::Header& header, const std::string& name);
Pixels decode_webp(std::span<const std::byte> data, const image_format::Header& header, const std::string& name);

// The error of every decoder.
[[noreturn]] void undecodable(const std::string& name, const std::string& reason);

}  // namespace squareq::image_codecs
