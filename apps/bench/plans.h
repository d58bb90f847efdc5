// Is the planner's choice the fastest?
#pragma once

#include "apps/bench/speed.h"

namespace squareq::bench {

// Measures training steps within speed.budget with the planner's choice, with all weights on the device and every block
// recomputed, with all weights streamed and as many activations kept as fit, and with `random` random choices that fit.
// 1 if one of them is faster than the planner's by more than 2 %, or a prediction for that is off by more than 10 %.
int run_plans(const SpeedOptions& speed, int random);

}  // namespace squareq::bench
