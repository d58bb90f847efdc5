// Any bytes as a picture: refused with a FormatError, or decoded into as many bytes as its size says. PNG checksums are
// made right first, so that what lies behind them is reached.
#include "io/image.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "io/image_format.h"
#include "kernels/base/error.h"

namespace {

void mend_checksums(std::vector<std::byte>& data) {
  constexpr std::size_t kAround = 12;  // length and type before the content, CRC after it
  for (std::size_t at = 8; at + kAround <= data.size();) {
    std::size_t length = 0;
    for (std::size_t i = 0; i < 4; ++i) length = length << 8U | std::to_integer<std::size_t>(data[at + i]);
    if (length > data.size() - at - kAround) return;
    const std::uint32_t crc = squareq::image_format::crc32(std::span(data).subspan(at + 4, 4 + length));
    for (unsigned i = 0; i < 4; ++i) data[at + 8 + length + i] = static_cast<std::byte>(crc >> (24 - 8 * i) & 0xFFU);
    at += kAround + length;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  std::vector<std::byte> file(bytes, bytes + size);
  if (size > 0 && data[0] == 0x89) mend_checksums(file);
  try {
    const squareq::Image image = squareq::decode_image(file, "fuzz");
    if (image.rgb.size() != 3 * static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height)) {
      std::abort();
    }
  } catch (const squareq::FormatError&) {
  }
  return 0;
}
