// Rates of matrix products: alone, and as linear layers with everything around them.
#pragma once

#include "apps/bench/speed.h"

namespace squareq::bench {

// On the CPU: OpenBLAS, matrices of size n. On a GPU: every frozen linear of FLUX.1's blocks at the row counts of
// pictures of 1024 x 1024 pixels and of 512 text tokens, forward and backward, in both precisions, beside the products
// inside and the fastest that cuBLASLt has for them in the same run.
int run_gemm(std::int64_t n, const SpeedOptions& options);

}  // namespace squareq::bench
