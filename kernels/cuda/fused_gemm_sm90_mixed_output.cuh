// Tiles of the kernel of fused_gemm_sm90_mixed.cu, and how it writes their sums, which are transposed.
#pragma once

#include "kernels/cuda/fused_gemm_sm90_output.cuh"

namespace squareq::cuda::sm90 {

constexpr int kRankStep = 32;  // of the low-rank term: 64 features of so many steps take as much memory as a stage's

template <int kGroups_, int kCols_>
struct MixedTile {
  static constexpr int kGroups = kGroups_, kRows = 64 * kGroups, kCols = kCols_;  // features, tokens
  static constexpr int kThreads = (kGroups + 1) * kWarpgroup;
  static constexpr int kGroupBytes = 64 * kRowElements;  // of a stage's weights: INT8
  static constexpr int kLeftBytes = kGroups * kGroupBytes, kRightBytes = kCols * 128;
  static constexpr int kStageBytes = kLeftBytes + kRightBytes;
  // Each group stores its features by itself, a chunk of tokens at a time, through two buffers.
  static constexpr int kChunk = 32;
  static constexpr int kBufferBytes = kChunk * 128;
  static constexpr int kBuffers = kGroups * 2;
  static constexpr int kBarrierBytes = 512, kAlignment = 1024;
  static constexpr int kScaleBytes = kRowElements * 4;  // of a stage
  static constexpr int kStages =
      (kSharedLimit - kAlignment - kBarrierBytes - kBuffers * kBufferBytes) / (kStageBytes + kScaleBytes);
  static constexpr int kSharedBytes =
      kAlignment + kStages * (kStageBytes + kScaleBytes) + kBuffers * kBufferBytes + kBarrierBytes;
  static_assert((2 * kStages + kBuffers) * 8 <= kBarrierBytes && kCols % kChunk == 0 && kStageBytes % 1024 == 0);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <class T>
struct MixedMemory : Memory<T> {
  __device__ std::uint32_t scales(int stage) const {
    return this->buffer(T::kBuffers) + T::kBarrierBytes + stage * T::kScaleBytes;
  }
};

// Values of a vector [n] for two neighbouring features.
struct FeaturePair {
  int first, n;

  __device__ FeaturePair(int first_in, int n_in) : first(first_in), n(n_in) {}
  __device__ void fetch(const void* from, DType type, float missing, float (&values)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) values[i] = from == nullptr ? missing : at(from, type, min(first + i, n - 1));
  }

 private:
  __device__ static float at(const void* from, DType type, int i) {
    if (type == DType::F32) return static_cast<const float*>(from)[i];
    if (type == DType::BF16) return as_float(static_cast<const __nv_bfloat16*>(from)[i]);
    return as_float(static_cast<const __half*>(from)[i]);
  }
};

// See WarpRows: a group, all tokens of its 64 features, chunks of tokens.
template <class T>
class GroupFeatures {
 public:
  static constexpr int kThreads = kWarpgroup, kRows = T::kChunk, kColumns = 64, kChunks = T::kCols / kRows;

  __device__ GroupFeatures()
      : thread(static_cast<int>(threadIdx.x) % kThreads), team(static_cast<int>(threadIdx.x) / kThreads) {}
  __device__ void synchronize() const { asm volatile("bar.sync %0, 128;" ::"r"(team + 1) : "memory"); }
  __device__ static int row(int chunk) { return chunk * kRows; }
  __device__ static int column(int) { return 0; }

  __device__ void fetch_gate(const Arguments& p, int column) {
    FeaturePair(column + thread / 4 * 2, p.n).fetch(p.gate, DType::F32, 1.0F, gate_);
  }
  __device__ float gate(int, int i) const { return gate_[i]; }

  template <class Function>
  __device__ void for_pairs(const Sums<T::kCols>& d, int chunk, Function f) const {
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int first = 4 * (chunk * (kRows / 8) + j) + i;
        f(8 * j + thread % 4 * 2 + i, thread / 4 * 2, 0, value(d[first]), value(d[first + 2]));
      }
    }
  }

  int thread, team;

 private:
  float gate_[2];
};

#endif

}  // namespace squareq::cuda::sm90
