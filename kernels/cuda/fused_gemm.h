// Matrix products on tensor cores with everything a linear layer does to its output fused in: scales of INT8 operands,
// the low-rank term of adapters, bias, GELU, gate and residual. One kernel family for each generation of tensor cores.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/base/view.h"
#include "kernels/cuda/gemm.h"

namespace squareq::cuda {

// One matrix product; every view has batch 1 and is row-major. With op(b) [k, n] and op(v) [r, n]:
//   y = a_scale[row] * b_scale[column] * (a op(b)) + u op(v) + bias
// a and b are both I8 (exact int32 sums) or both BF16 (float32 sums), or a is BF16 and b I8 (float32 sums); u and v are
// BF16 with float32 sums. y is rounded once, where it is written; epilogues use it before that rounding. Results repeat
// bit for bit: the order of the sums depends on the shape alone.
//
// With a BF16 and b I8 stored as [k, n], b_scale is given and belongs to k: b's values times it are rounded to BF16.
struct FusedGemm {
  ConstView a;                              // [m, k]
  ConstView b;                              // [n, k], or [k, n] if not transposed (not if a is I8)
  Transpose transpose_b = Transpose::kYes;  // kYes: stored as [n, k]
  ConstView a_scale;                        // [1, m] F32; empty: 1. None if a is BF16 and b I8
  ConstView b_scale;                        // [1, n] F32, or [1, k], see above; empty: 1
  // Low-rank term, adapters side by side: r is a multiple of 8, and an adapter of a part of the columns has zeros in v
  // for the others. Both empty or both given.
  ConstView u;                              // [m, r] BF16, already multiplied by the adapters' scales
  ConstView v;                              // [n, r], or [r, n] if not transposed; BF16
  Transpose transpose_v = Transpose::kYes;  // kYes: stored as [n, r]; kNo if a is BF16 and b I8
  ConstView bias;                           // [1, n] F32, F16 or BF16; empty: none

  // Outputs, BF16. At least one is given.
  View y;                                   // [m, n]
  Accumulate accumulate = Accumulate::kNo;  // kYes: y += (then neither act nor sum)
  // GELU (tanh form) of the columns [gelu_begin, n).
  View act;  // [m, n - gelu_begin]
  std::int64_t gelu_begin = 0;
  // sum = residual + gate * y; sum may be the same view as residual.
  ConstView gate;      // [1, n] F32; empty: 1
  ConstView residual;  // [m, n] BF16
  View sum;            // [m, n]
};

// The kernels that a device runs: mma.sync of compute capability 8.0 and newer, or wgmma of exactly 9.0.
enum class TensorCores : std::uint8_t { kSm80, kSm90 };
TensorCores tensor_cores_of_current_device();

// Can the kernels compute this? Types and layouts are as said above; rows of all matrices begin at multiples of 16
// bytes (pointer and row stride); n and gelu_begin are multiples of 8, m and k arbitrary. Depends on types, shapes,
// strides and alignment only.
bool fused_gemm_supports(const FusedGemm& gemm, TensorCores cores);

// Throws std::logic_error where fused_gemm_supports says no.
void fused_gemm(const FusedGemm& gemm, TensorCores cores, cudaStream_t stream);

// The families that the above choose from.
bool fused_gemm_sm80_supports(const FusedGemm& gemm);
void fused_gemm_sm80(const FusedGemm& gemm, cudaStream_t stream);
bool fused_gemm_sm90_supports(const FusedGemm& gemm);
void fused_gemm_sm90(const FusedGemm& gemm, cudaStream_t stream);
void fused_gemm_sm90_mixed(const FusedGemm& gemm, cudaStream_t stream);  // part of the above: a BF16, b I8

}  // namespace squareq::cuda
