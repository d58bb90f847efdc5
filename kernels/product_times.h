// How long matrix products of the CUDA backend take by themselves, beside those of NVIDIA's library: for squareq-bench.
#pragma once

#include <cstdint>

namespace squareq {

// a [m, k] times b, on random data. Where b is stored as [k, n], INT8 is not available.
struct ProductShape {
  bool int8 = false;          // else bfloat16
  bool b_transposed = false;  // stored as [n, k]
  std::int64_t m = 0, n = 0, k = 0;
};

// Seconds, medians of `repeats` runs in turn; 0 where the GPU has no such kernel.
struct ProductTimes {
  double fused = 0.0;    // the product of kernels/cuda/fused_gemm.h into bfloat16, INT8 with a scale for each row
  double library = 0.0;  // cuBLASLt into int32 or bfloat16, the fastest of its heuristics' first 16 algorithms
};

// On the current CUDA device; throws ConfigError where there is none.
ProductTimes time_cuda_product(const ProductShape& shape, int repeats);

}  // namespace squareq
