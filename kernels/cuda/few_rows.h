// Linear layers on a few float32 rows (modulation, embedders): bound by reading the weights once, so they have kernels
// of their own without tensor cores, and everything stays float32.
#pragma once

#include <cuda_runtime.h>

#include "kernels/base/view.h"

namespace squareq::cuda {

inline constexpr std::int64_t kFewRows = 16;

// y = (or +=) alpha * x W^T + bias for at most kFewRows rows in all. x [B, T, in] and y [B, T, out] F32.
void few_rows(ConstView x, const Weight& weight, float alpha, Accumulate accumulate, View y, cudaStream_t stream);

// dx = (or +=) alpha * dy W, likewise, by way of float32 sums over shares of the outputs: pieces, of at least
// few_rows_shares(rows, weight) * rows * in elements.
std::int64_t few_rows_shares(std::int64_t rows, const Weight& weight);
void few_rows_backward(ConstView dy, const Weight& weight, float alpha, Accumulate accumulate, View dx, View pieces,
                       cudaStream_t stream);

// out [1, m, n] += alpha * sum over all rows of left [., m] times right [., n]; all F32.
void few_rows_outer(ConstView left, ConstView right, float alpha, View out, cudaStream_t stream);

}  // namespace squareq::cuda
