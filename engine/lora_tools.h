// What squareq-lora does with LoRA files besides reading and writing them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/config.h"
#include "io/lora_file.h"
#include "kernels/base/shapes.h"

namespace squareq {

// Multiplies what the adapters do; the factor goes into `up`, since alpha is never negative or zero.
void scale_adapters(std::vector<LoraAdapter>& adapters, double factor);

// Brings every adapter to `rank` by its singular values, keeping alpha / rank. Returns, for each adapter, the Frobenius
// norm of its weight change after, divided by that before.
std::vector<double> resize_adapters(std::vector<LoraAdapter>& adapters, std::int64_t rank);

// Adapters of random values on the linears that `config` selects: A as training starts it, B normal with standard
// deviation 0.01. The same seed gives the same numbers.
std::vector<LoraAdapter> random_adapters(const LoraConfig& config, const FluxShape& shape, std::uint64_t seed);

// Metadata for a file made from others: the entries that all of them have alike, but for those that describe the
// tensors, which are made anew. With several sources their names are noted.
std::map<std::string, std::string> derived_metadata(const std::vector<LoraFile>& sources,
                                                    const std::vector<LoraAdapter>& adapters, const FluxShape& shape,
                                                    const std::string& output);

// Same as `adapters`, up to what a rounding of `down` costs: alpha / rank is a power of two for all of them.
bool folds_exactly(const std::vector<LoraAdapter>& adapters);

std::int64_t largest_rank(const std::vector<LoraAdapter>& adapters);

}  // namespace squareq
