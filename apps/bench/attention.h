// Attention on a GPU: every implementation there is, its speed and its error.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace squareq::bench {

struct AttentionOptions {
  std::vector<std::int64_t> tokens{4608, 2816, 1536};
  std::int64_t heads = 24;
  std::int64_t features = 128;  // of a head
  int repeats = 20;             // the median counts
  int threads = 0;              // of the CPU's reference
  bool json = false;
};

// Forward and backward on random bfloat16 numbers, as slices of wider rows: TFLOP/s, counting 4 and 10 operations for
// each pair of tokens and each column; relative L2 errors of the first two heads against the CPU in float32; and
// whether the backward gave the same bits every time. 1 if an error is too large or what is said to be deterministic is
// not, else 0. Throws ConfigError where there is no CUDA device.
int run_attention(const AttentionOptions& options);

}  // namespace squareq::bench
