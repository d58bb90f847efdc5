// Any bytes as the header of a slab: an error or an index, never a crash. The checksum of the header is made right
// first, so that the fuzzer reaches what lies behind it.
#include <cstdint>
#include <span>
#include <string>

#include "io/safetensors.h"
#include "io/slab_header.h"
#include "kernels/base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  try {
    const std::span<const std::byte> file = std::as_bytes(std::span(bytes));
    const squareq::SafetensorsHeader header = squareq::parse_safetensors(file, "fuzz");
    const std::string key = R"("header_checksum":")";
    const std::size_t at = bytes.find(key);
    if (at != std::string::npos && at + key.size() + squareq::kChecksumDigits <= header.data_begin) {
      bytes.replace(at + key.size(), squareq::kChecksumDigits,
                    squareq::header_checksum(file.first(header.data_begin), "fuzz"));
    }
    squareq::read_slab_index(squareq::parse_safetensors(file, "fuzz"), file, "fuzz");
  } catch (const squareq::Error&) {
  }
  return 0;
}
