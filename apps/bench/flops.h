// Floating-point operations of the matrix products in one training step (a multiply-add counts as two).
#pragma once

#include "engine/flux_engine.h"

namespace squareq::bench {

struct StepFlops {
  double forward = 0.0;
  double backward = 0.0;   // without the recomputation
  double recompute = 0.0;  // of blocks that do not keep their activations
  double total() const { return forward + backward + recompute; }
};

// Of the transformer as it is set up: linears and their adapters on the tokens that pass through them, and attention
// (2 products forward, 5 backward). Gradients that are not computed do not count, nor does what a recomputation skips.
StepFlops count_flops(FluxEngine& engine);

}  // namespace squareq::bench
