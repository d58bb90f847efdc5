// Any text as a configuration: it is refused with a ConfigError, or read into settings that survive being written out.
#include "engine/config.h"

#include <cstdlib>
#include <string_view>

#include "kernels/base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto config = squareq::parse_train_config({reinterpret_cast<const char*>(data), size}, "run.json");
    const std::string text = squareq::to_json(config);
    if (squareq::to_json(squareq::parse_train_config(text, "run.json")) != text) std::abort();
  } catch (const squareq::ConfigError&) {
  }
  return 0;
}
