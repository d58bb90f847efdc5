// Products of low-rank adapters with many rows. One side is so narrow that they are bound by reading the other once, so
// they have kernels of their own. All adapters of a linear are stacked: as columns of u one after the other, and as
// rows of two bfloat16 matrices (take_stacks), each with zeros up to R = adapter_columns(lora).
#pragma once

#include <cuda_runtime.h>

#include <span>

#include "kernels/ops.h"

namespace squareq::cuda {

// The stacks of all branches on one linear; empty where there are none.
struct StackedAdapters {
  ConstView a;  // [1, R, in]
  ConstView b;  // [1, R, out]
};
StackedAdapters stacks_of(std::span<const LoraBranch> lora, const Weight& weight);

// Writes the stacked views of branches of any number of linears, from the float32 masters.
void stack_adapters(std::span<const LoraBranch> lora, cudaStream_t stream);

// u [B, T, R] = x [B, T, K] w^T, w [1, R, K]; all bfloat16, sums float32.
void project_down(ConstView x, ConstView w, View u, cudaStream_t stream);

// Float32 memory that sum_outer needs for `cols` columns: [pieces, R, cols].
std::int64_t outer_pieces(const ConstView& shape);

// The pieces of left^T right, each summed over a share of all rows: left [B, T, R] and right [B, T, N] bfloat16, pieces
// [outer_pieces(right), R, N] float32. The shares depend on the shapes alone.
void sum_outer(ConstView left, ConstView right, View pieces, cudaStream_t stream);

// From the pieces of du^T x and of u^T dy, in order: da += and db += of every trained branch.
void add_adapter_gradients(std::span<const LoraBranch> lora, const View& da_pieces, const View& db_pieces,
                           cudaStream_t stream);

}  // namespace squareq::cuda
