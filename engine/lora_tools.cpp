#include "engine/lora_tools.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "engine/lora_targets.h"
#include "kernels/base/random.h"
#include "kernels/low_rank.h"

namespace squareq {

void scale_adapters(std::vector<LoraAdapter>& adapters, double factor) {
  for (LoraAdapter& adapter : adapters) {
    for (float& value : adapter.up) value = static_cast<float>(value * factor);
  }
}

std::vector<double> resize_adapters(std::vector<LoraAdapter>& adapters, std::int64_t rank) {
  std::vector<double> kept;
  for (LoraAdapter& adapter : adapters) {
    const float scale = adapter.scale();
    Truncation result = truncate({.rows = adapter.rows,
                                  .cols = adapter.in,
                                  .rank = adapter.rank,
                                  .up = std::move(adapter.up),
                                  .down = std::move(adapter.down)},
                                 rank);
    adapter.up = std::move(result.product.up);
    adapter.down = std::move(result.product.down);
    adapter.rank = rank;
    adapter.alpha = scale * static_cast<float>(rank);
    kept.push_back(result.kept);
  }
  return kept;
}

std::vector<LoraAdapter> random_adapters(const LoraConfig& config, const FluxShape& shape, std::uint64_t seed) {
  std::vector<LoraAdapter> adapters;
  for (const LoraTarget& target : select_lora_targets(config, shape)) {
    LoraAdapter adapter{.linear = target.linear,
                        .row_begin = target.row_begin,
                        .rows = target.rows,
                        .in = target.in,
                        .rank = target.rank,
                        .alpha = static_cast<float>(target.scale * static_cast<double>(target.rank)),
                        .down = std::vector<float>(static_cast<std::size_t>(target.rank * target.in)),
                        .up = std::vector<float>(static_cast<std::size_t>(target.rows * target.rank))};
    Random random(
        {.seed = seed, .purpose = Purpose::kSynthetic, .module = static_cast<std::uint32_t>(adapters.size())});
    const float bound = 1.0F / std::sqrt(static_cast<float>(target.in));
    random.fill_uniform(adapter.down, -bound, bound);
    random.fill_normal(adapter.up, 0.01F);
    adapters.push_back(std::move(adapter));
  }
  return adapters;
}

std::map<std::string, std::string> derived_metadata(const std::vector<LoraFile>& sources,
                                                    const std::vector<LoraAdapter>& adapters, const FluxShape& shape,
                                                    const std::string& output) {
  LoraMetadata about{.guidance = shape.guidance, .output_name = std::filesystem::path(output).stem().string()};
  about.rank = largest_rank(adapters);
  const bool one_alpha = std::all_of(adapters.begin(), adapters.end(),
                                     [&](const LoraAdapter& a) { return a.scale() == adapters[0].scale(); });
  about.alpha = static_cast<double>(about.rank) * (one_alpha ? static_cast<double>(adapters.at(0).scale()) : 1.0);
  about.extra = sources.empty() ? std::map<std::string, std::string>() : sources[0].metadata;
  std::erase_if(about.extra, [&](const auto& entry) {
    const bool agreed = std::all_of(sources.begin(), sources.end(), [&](const LoraFile& source) {
      const auto found = source.metadata.find(entry.first);
      return found != source.metadata.end() && found->second == entry.second;
    });
    return !agreed || entry.first == "ss_network_dim" || entry.first == "ss_network_alpha" ||
           entry.first == "ss_output_name" || entry.first == "modelspec.title" ||
           entry.first == "lora_adapter_metadata" || entry.first.starts_with("sshs_");
  });
  if (sources.size() > 1) {
    std::string& merged = about.extra["modelspec.merged_from"];
    merged.clear();
    for (const LoraFile& source : sources) {
      merged += (merged.empty() ? "" : ", ") + std::filesystem::path(source.path).stem().string();
    }
  }
  return lora_metadata(about);
}

bool folds_exactly(const std::vector<LoraAdapter>& adapters) {
  return std::all_of(adapters.begin(), adapters.end(), [](const LoraAdapter& a) {
    int exponent = 0;
    return std::frexp(a.scale(), &exponent) == 0.5F;
  });
}

std::int64_t largest_rank(const std::vector<LoraAdapter>& adapters) {
  std::int64_t rank = 0;
  for (const LoraAdapter& adapter : adapters) rank = std::max(rank, adapter.rank);
  return rank;
}

}  // namespace squareq
