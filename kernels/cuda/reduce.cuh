// Sums over threads, in a fixed order.
#pragma once

#include "kernels/cuda/pack.cuh"

namespace squareq::cuda {

inline constexpr int kWarp = 32;

// The sum over `lanes` neighbouring threads (a power of two), in each of them. `mask` names the threads of the warp
// that take part.
template <class T>
__device__ T group_sum(T value, int lanes = kWarp, unsigned mask = 0xFFFFFFFFU) {
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(mask, value, step);
  return value;
}

// The K sums over the block, in every thread. A block that takes several sums in a row gives two buffers in turn: one
// barrier a sum is then enough.
template <int K, class T>
__device__ void block_sums(T (&values)[K], T (&buffer)[K][kWarp]) {
  const unsigned lane = threadIdx.x % kWarp;
  const unsigned warp = threadIdx.x / kWarp;
  const unsigned warps = blockDim.x / kWarp;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    values[k] = group_sum(values[k]);
    if (lane == 0) buffer[k][warp] = values[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) values[k] = group_sum(lane < warps ? buffer[k][lane] : T{});
}

template <class T>
__device__ T block_sum(T value, T (&buffer)[1][kWarp]) {
  T values[1] = {value};
  block_sums(values, buffer);
  return values[0];
}

// One row, its packs of N columns dealt out to `lanes` threads. With kHeld > 0 each thread keeps its packs, at most
// kHeld, in registers: memory is read once however often the row is visited. They are kept as they stand in memory,
// because bfloat16 then takes half the registers. With kHeld = 0 each visit reads memory.
template <class T, int N, int kHeld>
class Row {
 public:
  __device__ Row(const T* from, int cols, int lane, int lanes) : from_(from), cols_(cols), lane_(lane), lanes_(lanes) {
    if constexpr (kHeld > 0) each([&](int i, int c) { held_[i] = load<N>(from_ + c); });
  }

  // Calls visit(i, c) for each pack of this thread, c its first column; at(i, c) are then the values.
  template <class Visit>
  __device__ void each(Visit visit) const {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const int c = (i * lanes_ + lane_) * N;
        if (c < cols_) visit(i, c);
      }
    } else {
      for (int c = lane_ * N; c < cols_; c += lanes_ * N) visit(0, c);
    }
  }
  __device__ Pack<T, N> at(int i, int c) const {
    if constexpr (kHeld > 0) {
      return held_[i];
    } else {
      return load<N>(from_ + c);
    }
  }

 private:
  const T* from_;
  int cols_, lane_, lanes_;
  Pack<T, N> held_[kHeld > 0 ? kHeld : 1];
};

}  // namespace squareq::cuda
