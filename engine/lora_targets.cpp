#include "engine/lora_targets.h"

#include <regex>

#include "kernels/base/error.h"
#include "model/flux/transformer.h"

namespace squareq {
namespace {

struct RowRange {
  std::int64_t begin;
  std::int64_t count;
};

// The rows of a linear that get adapters of their own. Fused rows: q, k, v (, MLP), `hidden` rows each but the last.
std::vector<RowRange> adapter_rows(const LoraConfig& config, const flux::LinearShape& linear, std::int64_t hidden) {
  const bool single = linear.name.ends_with(".linear1");
  const bool fused = single || linear.name.ends_with(".qkv");
  const bool attention_only = single && config.preset == "attention";
  const std::int64_t rows = attention_only ? 3 * hidden : linear.out;
  if (!fused || !config.split_qkv) return {{0, rows}};
  std::vector<RowRange> parts{{0, hidden}, {hidden, hidden}, {2 * hidden, hidden}};
  if (rows > 3 * hidden) parts.push_back({3 * hidden, rows - 3 * hidden});
  return parts;
}

struct RankAndScale {
  std::int64_t rank;
  double scale;
};

RankAndScale rank_of(const LoraConfig& config, const std::string& linear) {
  const double ratio = config.alpha / static_cast<double>(config.rank);
  for (const LoraConfig::Override& entry : config.overrides) {
    if (!std::regex_match(linear, std::regex(entry.pattern))) continue;
    return {entry.rank, entry.alpha > 0.0 ? entry.alpha / static_cast<double>(entry.rank) : ratio};
  }
  return {config.rank, ratio};
}

}  // namespace

std::vector<LoraTarget> select_lora_targets(const LoraConfig& config, const FluxShape& shape) {
  std::vector<LoraTarget> targets;
  for (const flux::LinearShape& linear : flux::linears(shape)) {
    if (!is_lora_target(config, linear.name)) continue;
    const RankAndScale chosen = rank_of(config, linear.name);
    for (const RowRange& rows : adapter_rows(config, linear, shape.hidden)) {
      targets.push_back({.linear = linear.name,
                         .row_begin = rows.begin,
                         .rows = rows.count,
                         .in = linear.in,
                         .out = linear.out,
                         .rank = chosen.rank,
                         .scale = chosen.scale});
    }
  }
  if (targets.empty()) {
    throw ConfigError({.where = "lora.targets",
                       .found = "no linear layer that matches",
                       .expected = "a preset, or expressions that match whole names such as "
                                   "'double_blocks\\\\.0\\\\.img_attn\\\\.qkv'",
                       .advice = "see docs/config.md"});
  }
  return targets;
}

}  // namespace squareq
