// A training step on random inputs, to be measured.
#pragma once

#include "apps/bench/speed.h"
#include "engine/flux_engine.h"

namespace squareq::bench {

// What the options describe, with all weights on the device.
FluxRun training_run(const SpeedOptions& options, const FluxShape& shape);

// Fills the engine's inputs and adapters with random numbers, always the same.
void set_random_inputs(FluxEngine& engine);

// Forward and backward, from the prediction itself.
void compute_gradients(FluxEngine& engine);

// The same, then clipping and optimizer; `step` counts from 1.
void training_step(FluxEngine& engine, std::int64_t step);

}  // namespace squareq::bench
