// The header of a safetensors file, from any bytes.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "io/safetensors.h"
#include "kernels/base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const squareq::SafetensorsHeader header = squareq::parse_safetensors(std::as_bytes(std::span(data, size)), "input");
    for (const squareq::TensorInfo& tensor : header.tensors) {
      if (tensor.begin > tensor.end || tensor.end > size) std::abort();
    }
  } catch (const squareq::FormatError&) {
  }
  return 0;
}
