// What the parts of the kernel of fused_gemm_sm90.cu share: tiles, their order, arguments and shared memory.
#pragma once

#include <algorithm>

#include "kernels/base/view.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace squareq::cuda::sm90 {

constexpr int kCluster = 2, kWarpgroup = 128, kWarpRows = 16;
constexpr int kRowElements = 64;  // BF16 values of 128 bytes
constexpr int kSharedLimit = 227 * 1024;

enum class Operands : std::uint8_t { kInt8, kBf16, kBf16RightMnMajor };

template <int kGroups_, int kCols_>
struct Tile {
  static constexpr int kGroups = kGroups_, kRows = 64 * kGroups, kCols = kCols_;
  static constexpr int kThreads = (kGroups + 1) * kWarpgroup;
  static constexpr int kLeftBytes = kRows * 128, kRightBytes = kCols * 128, kStageBytes = kLeftBytes + kRightBytes;
  // Each warp stores its 16 rows by itself, a chunk of columns at a time, through two buffers.
  static constexpr int kChunk = kGroups < 3 ? 64 : 32;
  static constexpr int kBufferBytes = kWarpRows * kChunk * 2;
  static constexpr int kBuffers = kGroups * 4 * 2;
  static constexpr int kBarrierBytes = 512, kAlignment = 1024;
  static constexpr int kStages = (kSharedLimit - kAlignment - kBarrierBytes - kBuffers * kBufferBytes) / kStageBytes;
  static constexpr int kSharedBytes = kAlignment + kStages * kStageBytes + kBuffers * kBufferBytes + kBarrierBytes;
  static_assert((2 * kStages + kBuffers) * 8 <= kBarrierBytes && kCols % kChunk == 0);
};

// Output tiles in the order of computation: bands of a few pairs of tiles, column by column, so that blocks at work at
// the same time share operands in the L2 cache.
struct Schedule {
  int pairs, columns, band;

  __host__ __device__ int count() const { return pairs * columns; }
  __device__ void place(int i, int& pair, int& column) const {
    const int first = i / (band * columns) * band;
    const int height = min(band, pairs - first);
    const int in_band = i - first * columns;
    pair = first + in_band % height;
    column = in_band / height;
  }
};

struct Arguments {
  CUtensorMap a, b, u, v, residual, y, act, sum;
  const float* a_scale;
  const float* b_scale;
  const float* gate;
  const void* bias;
  std::uint16_t* act_data;
  std::int64_t act_stride;
  DType bias_type;
  bool has_y, has_act, has_sum, has_residual, v_mn_major;
  int m, n, k, k_steps, rank, gelu_begin;  // k_steps: stages along K
  Schedule schedule;

  __device__ int rank_steps() const { return (rank + kRowElements - 1) / kRowElements; }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using namespace hopper;

template <class T>
struct Memory {
  std::uint32_t base;

  __device__ std::uint32_t left(int stage) const { return base + stage * T::kStageBytes; }
  __device__ std::uint32_t right(int stage) const { return left(stage) + T::kLeftBytes; }
  __device__ std::uint32_t buffer(int i) const { return base + T::kStages * T::kStageBytes + i * T::kBufferBytes; }
  __device__ std::uint32_t full(int stage) const { return buffer(T::kBuffers) + 8 * stage; }
  __device__ std::uint32_t empty(int stage) const { return full(T::kStages + stage); }
  __device__ std::uint32_t loaded(int i) const { return full(2 * T::kStages + i); }  // buffer i, with the residual
};

template <class T>
struct Ring {
  int stage = 0;
  std::uint32_t parity = 0;

  __device__ void advance() {
    if (++stage == T::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

#endif

}  // namespace squareq::cuda::sm90
