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

// Writes the outputs of one group's 64 features, chunk by chunk, each chunk of an output being a unit; units take the
// two buffers in turn. The residual of a chunk is fetched into the buffer where the sum replaces it.
template <class T>
class MixedWriter {
 public:
  __device__ MixedWriter(const Arguments& p, MixedMemory<T> memory, int group)
      : p_(p), memory_(memory), thread_(static_cast<int>(threadIdx.x) % kWarpgroup), group_(group) {
    const int lane = thread_ % 32, warp = thread_ / 32, token = lane % 4 * 2;
    // Of tokens 2 t and 2 t + 1 of every eight, in a buffer swizzled as TMA does.
    for (int i = 0; i < 2; ++i)
      offsets_[i] = (token + i) * 128 + ((2 * warp + lane / 16) ^ (token + i)) * 16 + lane / 4 % 4 * 4;
  }

  // Where the next tile's values of this group are. Fetches its first residual.
  __device__ void begin(int token, int feature) {
    token_ = token;
    feature_ = feature;
    if (p_.has_sum) FeaturePair(feature + thread_ / 4 * 2, p_.n).fetch(p_.gate, DType::F32, 1.0F, gate_);
    if (!p_.has_residual || thread_ != 0) return;
    wait_store_reads<0>();
    fetch_residual(0);
  }

  __device__ void write(Sums<T::kCols>& d) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      if (p_.has_sum) {
        write_sum(d, chunk);
        if (!p_.has_y) fetch_next_residual(chunk);
        store(p_.sum, feature_, chunk);
      }
      if (p_.has_y) {
        open();
        for_pairs(d, chunk, [](std::uint32_t, float x, float y) { return pair_of(x, y); });
        if (p_.has_sum) fetch_next_residual(chunk);
        store(p_.y, feature_, chunk);
      }
      const int act_feature = feature_ - p_.gelu_begin;
      if (p_.has_act && act_feature > -64) {
        open();
        constexpr Sigmoidal kGelu{.slope = 1.5957691216057308F, .cubic = 0.044715F};
        for_pairs(d, chunk, [&](std::uint32_t, float x, float y) { return pair_of(kGelu.value(x), kGelu.value(y)); });
        if (act_feature >= 0) {
          store(p_.act, act_feature, chunk);
        } else {
          store_right_part(-act_feature, chunk);
        }
      }
    }
  }

  __device__ void finish() {
    if (thread_ == 0) wait_store_reads<0>();
  }

 private:
  static constexpr int kChunks = T::kCols / T::kChunk;

  __device__ int slot() const { return static_cast<int>(unit_ & 1U); }
  __device__ std::uint32_t buffer() const { return memory_.buffer(group_ * 2 + slot()); }
  __device__ void synchronize() const { asm volatile("bar.sync %0, 128;" ::"r"(group_ + 1) : "memory"); }

  // The buffer of the unit is free of older stores.
  __device__ void open() {
    if (thread_ == 0) wait_store_reads<1>();
    synchronize();
  }
  // Calls f(address, value of feature 2 g, of feature 2 g + 1) and writes the pair that it returns.
  template <class Function>
  __device__ void for_pairs(Sums<T::kCols>& d, int chunk, Function f) {
#pragma unroll
    for (int j = 0; j < T::kChunk / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t at = buffer() + j * 8 * 128 + offsets_[i];
        const int first = 4 * (chunk * (T::kChunk / 8) + j) + i;
        store_pair(at, f(at, value(d[first]), value(d[first + 2])));
      }
    }
  }
  __device__ void write_sum(Sums<T::kCols>& d, int chunk) {
    if (p_.has_residual) {
      wait_barrier(memory_.loaded(group_ * 2 + slot()), parities_ >> slot() & 1U);
      parities_ ^= 1U << slot();
    } else {
      open();
    }
    for_pairs(d, chunk, [&](std::uint32_t address, float x, float y) {
      const std::uint32_t old = p_.has_residual ? load_pair(address) : 0U;
      return pair_of(__uint_as_float(old << 16) + gate_[0] * x, __uint_as_float(old & 0xFFFF0000U) + gate_[1] * y);
    });
  }
  // Into the other buffer.
  __device__ void fetch_next_residual(int chunk) {
    if (!p_.has_residual || chunk + 1 == kChunks || thread_ != 0) return;
    wait_store_reads<0>();
    ++unit_;
    fetch_residual(chunk + 1);
    --unit_;
  }
  __device__ void fetch_residual(int chunk) const {
    const std::uint32_t loaded = memory_.loaded(group_ * 2 + slot());
    arrive_expecting(loaded, T::kBufferBytes);
    load_box(buffer(), p_.residual, feature_, token_ + chunk * T::kChunk, loaded);
  }
  // The features of the chunk from `begin` on to the first of `act`: TMA does not store boxes that begin before a
  // matrix.
  __device__ void store_right_part(int begin, int chunk) {
    synchronize();
    const int first = token_ + chunk * T::kChunk;
    for (int i = thread_; i < T::kChunk * 32; i += kWarpgroup) {
      const int row = i / 32, feature = i % 32 * 2;
      const bool inside = feature >= begin && feature - begin < p_.n - p_.gelu_begin && first + row < p_.m;
      const std::uint32_t pair = load_pair(buffer() + row * 128 + ((feature / 8) ^ (row % 8)) * 16 + feature % 8 * 2);
      if (inside)
        *reinterpret_cast<std::uint32_t*>(p_.act_data + (first + row) * p_.act_stride + feature - begin) = pair;
    }
    if (thread_ == 0) wait_store_reads<0>();  // as open() counts the stores of two units
    synchronize();
    ++unit_;
  }
  __device__ void store(const CUtensorMap& map, int feature, int chunk) {
    fence_for_copies();
    synchronize();
    if (thread_ == 0) store_box(map, feature, token_ + chunk * T::kChunk, buffer());
    ++unit_;
  }

  const Arguments& p_;
  MixedMemory<T> memory_;
  int thread_, group_;
  int token_ = 0, feature_ = 0;
  unsigned unit_ = 0, parities_ = 0;
  std::uint32_t offsets_[2];
  float gate_[2];
};

#endif

}  // namespace squareq::cuda::sm90
