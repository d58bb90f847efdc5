// Euler sampling of the flow from noise (sigma 1) to data (sigma 0).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/flux_engine.h"

namespace squareq {

// Latents of all samples of a batch [B, tokens, channels], updated in place from sigmas.front() to sigmas.back():
// x += (sigma_next - sigma) * velocity, in float32. `conditions` gives every sample's text states, pooled state and
// guidance; img and sigma in it are ignored. `after_step` is called with the number of steps done.
void euler_sample(FluxEngine& engine, std::span<const FluxEngine::Sample> conditions, std::span<const double> sigmas,
                  std::span<float> latents, const std::function<void(std::size_t steps)>& after_step);

}  // namespace squareq
