// How long matrix products of the CUDA backend take by themselves, beside those of NVIDIA's library: for squareq-bench.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace squareq {

// a [m, k] times b of INT8, on random data. Where b is stored as [k, n], a is bfloat16.
struct ProductShape {
  bool int8 = false;          // a; else bfloat16
  bool b_transposed = false;  // stored as [n, k]
  std::int64_t m = 0, n = 0, k = 0;
};

// Seconds, medians; 0 where the GPU has no such kernel.
struct ProductTimes {
  double fused = 0.0;  // the product of kernels/cuda/fused_gemm.h into bfloat16
  double library =
      0.0;  // cuBLASLt with both of a's type, into int32 or bfloat16: the fastest of its first 16 proposals
  std::vector<double> others;
};

// A GPU that was idle is faster for a moment, so what is to be compared runs equally often in a row.
inline constexpr int kProductsInARow = 10;

// On the current CUDA device, `repeats` times each in turn with `others`, which return seconds: so all meet the same
// clocks. Throws ConfigError where there is no device.
ProductTimes time_cuda_product(const ProductShape& shape, int repeats,
                               const std::vector<std::function<double()>>& others);

}  // namespace squareq
