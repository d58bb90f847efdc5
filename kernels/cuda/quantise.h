// INT8 matrices for products on integer tensor cores.
#pragma once

#include <cuda_runtime.h>

#include "kernels/base/view.h"

namespace squareq::cuda {

// Rows as INT8 with a scale each: x = scale * q but for rounding.
struct QuantisedRows {
  View values;  // I8 [1, rows, cols], contiguous
  View scales;  // F32 [1, 1, rows]
};

// Symmetric, for each row of each sample of x [B, T, cols] (BF16 or F32), T rows of a sample after those of the one
// before: scale = max |x * factor| / 127 and q = x * factor * (127 / max |x * factor|), rounded half to even. A row of
// zeros, or of numbers below 1e-30, has scale 1 and zeros. A row with a NaN or an infinity has a scale that is not
// finite. `factors` [1, 1, cols] F32 multiplies columns first; may be empty.
void quantise_rows(ConstView x, ConstView factors, const QuantisedRows& out, cudaStream_t stream);

// out [1, n, m] = the transpose of x [1, m, n], both I8 and contiguous; m and n multiples of 16.
void transpose_int8(ConstView x, View out, cudaStream_t stream);

}  // namespace squareq::cuda
