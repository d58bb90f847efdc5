#include "io/slab_synth.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <initializer_list>
#include <span>
#include <string_view>

#include "io/slab_header.h"
#include "io/slab_layout.h"
#include "io/slab_shape.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

bool ends_with_any(std::string_view name, std::initializer_list<std::string_view> ends) {
  return std::any_of(ends.begin(), ends.end(), [&](std::string_view end) { return name.ends_with(end); });
}

// Mean and standard deviation of a tensor's values.
struct Spread {
  double mean = 0.0;
  double deviation = 0.0;
};

// With inputs of order one every linear gives outputs of order one (1/sqrt(in)). What is added to the residual stream,
// twice a block, is smaller by the root of the number of additions, so that the stream stays of order one up to the
// last block. Modulation is small, with gates and scales that differ from zero through their biases. T5 does not divide
// its scores by sqrt(head_dim), so its queries are that much smaller.
Spread spread_of(const std::string& name, const std::vector<std::int64_t>& shape, const SlabShape& network) {
  const bool matrix = shape.size() == 2;
  const double fan_in = matrix ? 1.0 / std::sqrt(static_cast<double>(shape[1])) : 0.0;
  const bool modulation = contains(name, "mod.lin") || contains(name, "modulation.");
  if (!matrix) {
    if (!name.ends_with(".bias")) return {.mean = 1.0};
    return {.deviation = modulation ? 0.3 : 0.02};
  }
  if (modulation) return {.deviation = 0.2 * fan_in};
  if (name == "shared.weight") return {.deviation = 1.0};
  if (contains(name, "relative_attention_bias")) return {.deviation = 0.5};
  if (ends_with_any(name, {"_attn.proj.weight", "_mlp.2.weight", ".linear2.weight", ".o.weight", ".wo.weight"})) {
    return {.deviation = fan_in / std::sqrt(2.0 * static_cast<double>(block_count(network)))};
  }
  if (const auto* t5 = std::get_if<T5Shape>(&network); t5 != nullptr && name.ends_with("SelfAttention.q.weight")) {
    return {.deviation = fan_in / std::sqrt(static_cast<double>(t5->head_dim))};
  }
  return {.deviation = fan_in};
}

std::uint64_t mix(std::uint64_t z) {  // the splitmix64 finaliser
  z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27U)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31U);
}

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15ULL;

}  // namespace

SyntheticSource::SyntheticSource(const SlabShape& shape, std::uint64_t seed) : seed_(seed) {
  for (const NamedShape& tensor : slab_tensors(shape)) {
    const Spread spread = spread_of(tensor.name, tensor.shape, shape);
    const std::string hash = checksum_of(std::as_bytes(std::span(tensor.name)));
    // A sum of four uniform 16-bit numbers has variance (2^32 - 1) / 3.
    tensors_.emplace(tensor.name,
                     Tensor{.cols = tensor.shape.size() == 2 ? tensor.shape[1] : 1,
                            .stream = mix(seed ^ std::stoull(hash.substr(0, 16), nullptr, 16)),
                            .mean = static_cast<float>(spread.mean),
                            .factor = static_cast<float>(spread.deviation / std::sqrt((0x1p32 - 1.0) / 3.0))});
  }
}

std::string SyntheticSource::key() const { return fmt::format("synthetic {}", seed_); }

DType SyntheticSource::dtype(const std::string&) const { return DType::BF16; }

void SyntheticSource::read(const std::string& name, std::int64_t row_begin, std::int64_t rows, float* out) const {
  const Tensor& tensor = tensors_.at(name);
  const std::uint64_t first = tensor.stream + (static_cast<std::uint64_t>(row_begin * tensor.cols) + 1) * kGolden;
  for (std::int64_t i = 0; i < rows * tensor.cols; ++i) {
    const std::uint64_t z = mix(first + static_cast<std::uint64_t>(i) * kGolden);
    const std::uint64_t sum = (z & 0xFFFFU) + ((z >> 16U) & 0xFFFFU) + ((z >> 32U) & 0xFFFFU) + (z >> 48U);
    const float value = tensor.mean + tensor.factor * static_cast<float>(static_cast<std::int32_t>(sum) - 2 * 0xFFFF);
    const auto bits = std::bit_cast<std::uint32_t>(value);
    out[i] = std::bit_cast<float>((bits + 0x7FFFU + ((bits >> 16U) & 1U)) & 0xFFFF0000U);
  }
}

SlabShape named_shape(const std::string& name) {
  const FluxShape dev{.hidden = 3072,
                      .heads = 24,
                      .head_dim = 128,
                      .axes = {16, 56, 56},
                      .double_blocks = 19,
                      .single_blocks = 38,
                      .mlp_hidden = 12288,
                      .context_in = 4096,
                      .vector_in = 768,
                      .in_channels = 64,
                      .out_channels = 64,
                      .guidance = true};
  if (name == "flux-dev") return dev;
  if (name == "flux-schnell") {
    FluxShape schnell = dev;
    schnell.guidance = false;
    return schnell;
  }
  if (name == "mini") {
    return FluxShape{.hidden = 192,
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
  }
  if (name == "t5-xxl") {
    return T5Shape{.vocab = 32128, .width = 4096, .layers = 24, .heads = 64, .head_dim = 64, .mlp_hidden = 10240};
  }
  throw ConfigError({"shape", "'" + name + "'", "flux-dev, flux-schnell, t5-xxl or mini"});
}

void synthesize_slab(const SlabShape& shape, const std::string& path, const SynthOptions& options) {
  check_shape(shape, path);
  write_slab(SyntheticSource(shape, options.seed), shape, path,
             {.threads = options.threads, .progress = options.progress});
}

}  // namespace squareq
