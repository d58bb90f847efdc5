#include "engine/saved_lora.h"

#include <spdlog/spdlog.h>

#include <charconv>
#include <cmath>
#include <filesystem>

#include "kernels/base/error.h"

namespace squareq {
namespace {

struct Entry {
  std::string path;
  double strength = 1.0;
};

Entry parse_entry(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos || std::filesystem::exists(text)) return {.path = text};
  Entry entry{.path = text.substr(0, colon)};
  const char* begin = text.data() + colon + 1;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(begin, end, entry.strength);
  if (error != std::errc() || stop != end || !std::isfinite(entry.strength)) {
    throw ConfigError({.where = "--lora " + text,
                       .found = "strength '" + std::string(begin, end) + "'",
                       .expected = "FILE or FILE:NUMBER"});
  }
  return entry;
}

}  // namespace

void SavedLoras::upload(FluxEngine& engine) const {
  for (std::size_t i = 0; i < adapters.size(); ++i) {
    engine.device().upload(adapters[i].down.data(), engine.lora().a(i));
    engine.device().upload(adapters[i].up.data(), engine.lora().b(i));
  }
}

SavedLoras load_loras(const std::vector<std::string>& entries, const FluxShape& shape) {
  SavedLoras loras;
  for (const std::string& text : entries) {
    const Entry entry = parse_entry(text);
    LoraFile file = read_lora(entry.path, shape);
    if (!file.unmapped.empty()) {
      spdlog::warn("{}: {} tensors are not for the transformer and are not used, the first is '{}'", entry.path,
                   file.unmapped.size(), file.unmapped.front());
    }
    for (LoraAdapter& adapter : file.adapters) {
      loras.targets.push_back({.linear = adapter.linear,
                               .row_begin = adapter.row_begin,
                               .rows = adapter.rows,
                               .in = adapter.in,
                               .rank = adapter.rank,
                               .scale = static_cast<double>(adapter.scale()) * entry.strength,
                               .trained = false});
      loras.adapters.push_back(std::move(adapter));
    }
  }
  return loras;
}

}  // namespace squareq
