// Sums over the rows of each sample, for each column: first over pieces of kPieceRows rows, then over the pieces. The
// order depends on the shape alone.
#pragma once

#include "kernels/cuda/check.h"
#include "kernels/cuda/reduce.cuh"

namespace squareq::cuda {

inline constexpr int kPieceRows = 64;
inline constexpr int kSumWarps = 8;

inline std::int64_t pieces_of(std::int64_t rows) { return (rows + kPieceRows - 1) / kPieceRows; }

// Term::kSums values for each element: term.add(b, t, c, sums) adds those of N columns of one row.
// Three blocks to a multiprocessor leave enough registers on every architecture.
template <int N, class Term>
__global__ void __launch_bounds__(kWarp* kSumWarps, 3)
    column_pieces_kernel(Term term, int rows, int cols, float* __restrict__ partial) {
  __shared__ float shared[kSumWarps][kWarp * N];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int first = blockIdx.x * kWarp * N;
  const int c = first + lane * N;
  const int last = min(rows, static_cast<int>(blockIdx.y + 1) * kPieceRows);
  float sums[Term::kSums][N] = {};
  if (c < cols) {
    for (int t = blockIdx.y * kPieceRows + warp; t < last; t += kSumWarps) term.add(blockIdx.z, t, c, sums);
  }
  partial += static_cast<std::int64_t>(blockIdx.z * gridDim.y + blockIdx.y) * Term::kSums * cols;
#pragma unroll
  for (int k = 0; k < Term::kSums; ++k, partial += cols) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i) shared[warp][lane * N + i] = sums[k][i];
    __syncthreads();
    for (int i = threadIdx.x; i < kWarp * N && first + i < cols; i += kWarp * kSumWarps) {
      float sum = 0.0F;
      for (int w = 0; w < kSumWarps; ++w) sum += shared[w][i];
      partial[first + i] = sum;
    }
  }
}

// partial [batch, pieces, sums, cols]; each block sums 32 columns of one of the sums.
static __global__ void __launch_bounds__(kWarp* kSumWarps)
    column_totals_kernel(const float* __restrict__ partial, int pieces, int sums, int cols, Rows<float> first,
                         Rows<float> second) {
  const Rows<float>& out = blockIdx.y == 0 ? first : second;
  if (out.data == nullptr) return;
  __shared__ float shared[kSumWarps][kWarp];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int c = blockIdx.x * kWarp + lane;
  float sum = 0.0F;
  if (c < cols) {
#pragma unroll 4
    for (int piece = warp; piece < pieces; piece += kSumWarps) {
      sum += partial[(static_cast<std::int64_t>(blockIdx.z * pieces + piece) * sums + blockIdx.y) * cols + c];
    }
  }
  shared[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || c >= cols) return;
  sum = 0.0F;
  for (int w = 0; w < kSumWarps; ++w) sum += shared[w][lane];
  out(blockIdx.z, 0)[c] = sum;
}

// partial: F32 [batch * pieces_of(rows), Term::kSums, cols]. Sums whose view is empty are not written.
template <int N, class Term>
void column_sums(cudaStream_t stream, const Term& term, const ConstView& shape, const View& partial, const View& first,
                 const View& second) {
  const auto batch = static_cast<unsigned>(shape.batch);
  const auto pieces = static_cast<unsigned>(pieces_of(shape.rows));
  const auto rows = static_cast<int>(shape.rows);
  const auto cols = static_cast<int>(shape.cols);
  auto* sums = reinterpret_cast<float*>(partial.data);
  column_pieces_kernel<N>
      <<<dim3(ceil_div(cols, kWarp * N), pieces, batch), kWarp * kSumWarps, 0, stream>>>(term, rows, cols, sums);
  check_launch("column sums, pieces");
  column_totals_kernel<<<dim3(ceil_div(cols, kWarp), Term::kSums, batch), kWarp * kSumWarps, 0, stream>>>(
      sums, static_cast<int>(pieces), Term::kSums, cols, float_rows(first), float_rows(second));
  check_launch("column sums, totals");
}

}  // namespace squareq::cuda
