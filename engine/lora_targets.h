// Which adapters a configuration asks for.
#pragma once

#include <vector>

#include "engine/config.h"
#include "kernels/base/shapes.h"
#include "model/lora.h"

namespace squareq {

// The adapters of a run, in execution order. Fused projections get one adapter, or with split_qkv one for each of q,
// k, v (and the MLP part of linear1). Throws ConfigError if nothing is selected.
std::vector<LoraTarget> select_lora_targets(const LoraConfig& config, const FluxShape& shape);

}  // namespace squareq
