#include "engine/saved_lora.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "io/lora_layout.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

// Whether the trained adapters reach every row that `adapter` changes.
bool reached(const LoraSet& lora, const LoraAdapter& adapter) {
  for (std::int64_t row = 0; row < adapter.rows; ++row) {
    const auto first = adapter.up.begin() + static_cast<std::ptrdiff_t>(row * adapter.rank);
    if (std::all_of(first, first + static_cast<std::ptrdiff_t>(adapter.rank), [](float v) { return v == 0.0F; })) {
      continue;
    }
    const std::int64_t at = adapter.row_begin + row;
    const bool found = std::any_of(lora.targets().begin(), lora.targets().end(), [&](const LoraTarget& t) {
      return t.trained && t.linear == adapter.linear && t.row_begin <= at && at < t.row_begin + t.rows;
    });
    if (!found) return false;
  }
  return true;
}

// Puts the terms of `saved` into adapter `index`, whose scale may be another.
void set_terms(FluxEngine& engine, std::size_t index, const LoraAdapter& saved) {
  const LoraSet& lora = engine.lora();
  const LoraTarget& target = lora.targets()[index];
  std::vector<float> a(static_cast<std::size_t>(target.rank * target.in));
  std::vector<float> b(static_cast<std::size_t>(target.rows * target.rank));
  engine.device().download(lora.a(index), a.data());
  const auto factor = static_cast<float>(static_cast<double>(saved.scale()) / target.scale);
  std::transform(saved.down.begin(), saved.down.end(), a.begin(), [&](float value) { return factor * value; });
  for (std::int64_t row = 0; row < target.rows; ++row) {
    std::copy_n(saved.up.data() + row * saved.rank, saved.rank, b.data() + row * target.rank);
  }
  engine.device().upload(a.data(), lora.a(index));
  engine.device().upload(b.data(), lora.b(index));
}

}  // namespace

LoraEntry parse_lora_entry(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos || std::filesystem::exists(text)) return {.path = text};
  LoraEntry entry{.path = text.substr(0, colon)};
  const char* begin = text.data() + colon + 1;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(begin, end, entry.strength);
  if (error != std::errc() || stop != end || !std::isfinite(entry.strength)) {
    throw ConfigError({.where = "LoRA " + text,
                       .found = "strength '" + std::string(begin, end) + "'",
                       .expected = "FILE or FILE:NUMBER"});
  }
  return entry;
}

LoraFile read_lora_warning(const std::string& path, const FluxShape& shape) {
  LoraFile file = read_lora(path, shape);
  if (!file.unmapped.empty()) {
    spdlog::warn("{}: {} tensors are not for the transformer and are not used, the first is '{}'", path,
                 file.unmapped.size(), file.unmapped.front());
  }
  return file;
}

void SavedLoras::upload(FluxEngine& engine) const {
  for (std::size_t i = 0; i < adapters.size(); ++i) {
    engine.device().upload(adapters[i].down.data(), engine.lora().a(i));
    engine.device().upload(adapters[i].up.data(), engine.lora().b(i));
  }
}

SavedLoras load_loras(const std::vector<std::string>& entries, const FluxShape& shape) {
  const std::vector<LinearSize> linears = flux_linears(shape);
  const auto out_of = [&](const std::string& name) {
    return std::find_if(linears.begin(), linears.end(), [&](const LinearSize& l) { return l.name == name; })->out;
  };
  SavedLoras loras;
  for (const std::string& text : entries) {
    const LoraEntry entry = parse_lora_entry(text);
    LoraFile file = read_lora_warning(entry.path, shape);
    for (LoraAdapter& adapter : file.adapters) {
      loras.targets.push_back({.linear = adapter.linear,
                               .row_begin = adapter.row_begin,
                               .rows = adapter.rows,
                               .in = adapter.in,
                               .out = out_of(adapter.linear),
                               .rank = adapter.rank,
                               .scale = static_cast<double>(adapter.scale()) * entry.strength,
                               .trained = false});
      loras.adapters.push_back(std::move(adapter));
    }
  }
  return loras;
}

void start_from_lora(FluxEngine& engine, const std::string& path) {
  const FluxShape& shape = engine.state().shape;
  const LoraFile file = read_lora_warning(path, shape);
  const LoraSet& lora = engine.lora();
  for (const LoraAdapter& adapter : file.adapters) {
    if (reached(lora, adapter)) continue;
    throw ConfigError({.where = "lora.start_from: " + path,
                       .found = "an adapter on '" + adapter.linear + "', on rows that lora.targets leaves out",
                       .expected = "adapters on what is trained",
                       .advice = "choose lora.targets that include it"});
  }
  for (const LinearSize& linear : flux_linears(shape)) {
    for (std::size_t i = 0; i < lora.targets().size(); ++i) {
      const LoraTarget& target = lora.targets()[i];
      if (!target.trained || target.linear != linear.name) continue;
      const auto saved = adapter_on_rows(file.adapters, linear, target.row_begin, target.rows);
      if (!saved) continue;
      if (saved->rank > target.rank) {
        throw ConfigError({.where = "lora.start_from: " + path,
                           .found = fmt::format("rank {} on '{}'", saved->rank, linear.name),
                           .expected = fmt::format("at most lora.rank, which is {}", target.rank),
                           .advice = "raise lora.rank, set lora.split_qkv as the file was trained, or make a file of "
                                     "lower rank with squareq-lora resize"});
      }
      set_terms(engine, i, *saved);
    }
  }
}

}  // namespace squareq
