// Any bytes as a LoRA file: an error, or adapters that can be written in both namings.
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "io/lora_layout.h"
#include "io/slab_build.h"
#include "kernels/base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string kPath =
      (std::filesystem::temp_directory_path() / ("squareq-fuzz-lora-" + std::to_string(getpid()))).string();
  const auto shape = std::get<squareq::FluxShape>(squareq::named_shape("mini"));
  try {
    std::ofstream(kPath, std::ios::binary)
        .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
    const squareq::LoraFile file = squareq::read_lora(kPath, shape);
    for (const auto naming : {squareq::LoraNaming::kKohya, squareq::LoraNaming::kPeft}) {
      squareq::arrange_adapters(file.adapters, shape, naming);
    }
  } catch (const squareq::Error&) {
  }
  return 0;
}
