// How long a step takes whose weights stream: a model of the prefetch queue in time.
#pragma once

#include <cstddef>
#include <vector>

namespace squareq {

// One stage in one pass.
struct PassStage {
  std::size_t stage = 0;       // which one, the same in both passes
  double seconds = 0.0;        // of its operations
  std::size_t streamed = 0;    // bytes that have to be brought; 0: the weights are there
  std::size_t slots_used = 0;  // by these bytes
};

// Seconds from one step to the next in a long run of equal steps. A step is the stages of `step` in order, forward and
// backward; `slots` is what streamed weights share; bytes come at `rate` a second, in order, each stage's as soon as
// the stages of enough slots are done.
double predict_step(const std::vector<PassStage>& step, std::size_t slots, double rate);

}  // namespace squareq
