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

// Training steps, one after the other, on random inputs.
class TrainingSteps {
 public:
  struct Time {
    double seconds = 0.0;          // of a step, the median
    std::int64_t allocations = 0;  // of device memory, in all
  };

  explicit TrainingSteps(FluxEngine& engine);

  // compute_gradients, clipping, optimizer.
  void next();
  // Of `repeats` steps, after some that warm up.
  Time measure(int repeats);

 private:
  FluxEngine& engine_;
  std::int64_t step_ = 0;
};

}  // namespace squareq::bench
