// Any text as settings of another trainer: it is refused with an Error, or turned into JSON.
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "engine/import_fields.h"
#include "engine/import_tree.h"
#include "kernels/base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto attempt = [&](auto action) {
    try {
      action();
    } catch (const squareq::Error&) {
    }
  };
  const auto check = [](const squareq::ImportedConfig& config) {
    if (!nlohmann::json::parse(config.json).is_object()) std::abort();
    squareq::import_report(config);
  };
  attempt([&] { check(squareq::import_ai_toolkit(squareq::parse_yaml(text, "job.yaml"), "job.yaml")); });
  attempt([&] { check(squareq::import_kohya(squareq::parse_toml(text, "run.toml"), "run.toml")); });
  return 0;
}
