// Any bytes as a LoRA file: an error, or adapters that can be written in both namings.
#include <unistd.h>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "io/lora_layout.h"
#include "kernels/base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string kPath =
      (std::filesystem::temp_directory_path() / ("squareq-fuzz-lora-" + std::to_string(getpid()))).string();
  const squareq::FluxShape shape{.hidden = 192,
                                 .heads = 3,
                                 .head_dim = 64,
                                 .axes = {8, 28, 28},
                                 .double_blocks = 3,
                                 .single_blocks = 6,
                                 .mlp_hidden = 768,
                                 .context_in = 128,
                                 .vector_in = 64,
                                 .in_channels = 64,
                                 .out_channels = 64,
                                 .guidance = true};
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
