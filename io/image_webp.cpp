#include <webp/decode.h>

#include "io/image_codecs.h"
#include "io/large_memory.h"

namespace squareq::image_codecs {

Pixels decode_webp(std::span<const std::byte> data, const image_format::Header& header, const std::string& name) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(data.data());
  WebPBitstreamFeatures features;
  if (WebPGetFeatures(bytes, data.size(), &features) != VP8_STATUS_OK) undecodable(name, "no WebP stream");
  Pixels pixels{.channels = features.has_alpha != 0 ? 4 : 3, .samples = {}};
  const int stride = pixels.channels * header.width;
  pixels.samples =
      large_vector<std::uint8_t>(static_cast<std::size_t>(stride) * static_cast<std::size_t>(header.height));
  const auto decode = pixels.channels == 4 ? WebPDecodeRGBAInto : WebPDecodeRGBInto;
  if (decode(bytes, data.size(), pixels.samples.data(), pixels.samples.size(), stride) == nullptr) {
    undecodable(name, "a damaged WebP stream");
  }
  return pixels;
}

}  // namespace squareq::image_codecs
