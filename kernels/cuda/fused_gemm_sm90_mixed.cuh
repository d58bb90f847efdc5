// The kernel of fused_gemm_sm90_mixed.cu: BF16 activations times INT8 weights, which become BF16 in registers. Wgmma
// reads only its left operand from there, so the transposed product is computed: tiles of [features, tokens], weights
// on the left. Otherwise as fused_gemm_sm90.cuh; the tokens' values are what both blocks of a cluster share.
//
// Rows of the sums may stand for features in any order: row g of a warp's 16 stands for its feature 2 g, row g + 8 for
// 2 g + 1. So a thread's two rows are neighbouring features, and it writes pairs of outputs.
#pragma once

#include "kernels/cuda/fused_gemm_sm90.cuh"
#include "kernels/cuda/fused_gemm_sm90_mixed_output.cuh"

namespace squareq::cuda::sm90 {

// How the weight is stored, in FusedGemm's terms: [n, k] with scales of the features, or [k, n] with scales along K.
enum class Stored : std::uint8_t { kByFeature, kByK };

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Calls f(place in the ring, step, pair and column of the tile) for every stage of the block, when it may be filled.
// The steps of a tile are those of K, then those of the rank.
template <class T, class Function>
__device__ void for_stages(const Arguments& p, MixedMemory<T> memory, Function f) {
  const int steps = p.k_steps + (p.rank + kRankStep - 1) / kRankStep;
  Ring<T> ring;
  for (int i = static_cast<int>(blockIdx.x) / kCluster; i < p.schedule.count(); i += gridDim.x / kCluster) {
    int pair, column;
    p.schedule.place(i, pair, column);
    for (int step = 0; step < steps; ++step, ring.advance()) {
      wait_barrier(memory.empty(ring.stage), ring.parity ^ 1);
      f(ring.stage, step, pair, column);
    }
  }
}

// One thread.
template <class T, Stored kStored>
__device__ void produce_mixed(const Arguments& p, MixedMemory<T> memory) {
  const std::uint32_t block = block_in_cluster();
  wait_for_kernels_before();
  for_stages(p, memory, [&](int stage, int step, int pair, int column) {
    const int feature = (pair * kCluster + static_cast<int>(block)) * T::kRows;
    const std::uint32_t full = memory.full(stage);
    arrive_expecting(full, T::kStageBytes);
    const int k = step < p.k_steps ? step * kRowElements : (step - p.k_steps) * kRankStep;
    load_right<T>(step < p.k_steps ? p.a : p.u, false, k, column * T::kCols, memory.right(stage), full, block);
#pragma unroll
    for (int group = 0; group < T::kGroups; ++group) {
      const std::uint32_t to = memory.left(stage) + group * T::kGroupBytes;
      const int first = feature + group * 64;
      if (step >= p.k_steps) {
        load_box(to, p.v, first, k, full);
      } else if constexpr (kStored == Stored::kByFeature) {
        load_box(to, p.b, k, first, full);
      } else {
        load_box(to, p.b, first, k, full);
      }
    }
  });
}

// One warp: the scales of a stage's steps of K, in pairs of neighbours, as sums of two BF16 values. They are fetched
// one stage ahead.
template <class T>
__device__ void produce_scales(const Arguments& p, MixedMemory<T> memory) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float first = 0.0F, second = 0.0F;
  const auto fetch = [&](int step) {
    const int k = step * kRowElements + 2 * lane;
    first = k < p.k ? p.b_scale[k] : 0.0F;
    second = k + 1 < p.k ? p.b_scale[k + 1] : 0.0F;
  };
  wait_for_kernels_before();
  fetch(0);
  for_stages(p, memory, [&](int stage, int step, int, int) {
    if (step < p.k_steps) {
      const std::uint32_t high = pair_of(first, second);
      const std::uint32_t low =
          pair_of(first - __uint_as_float(high << 16), second - __uint_as_float(high & 0xFFFF0000U));
      asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(memory.scales(stage) + lane * 8), "r"(high), "r"(low)
                   : "memory");
      fetch(step + 1 < p.k_steps ? step + 1 : 0);
    }
    __syncwarp();
    if (lane == 0) arrive_expecting(memory.full(stage), 0);
  });
}

// Left operands of one stage for multiply_bf16, in four parts of 16 steps of K.
using Fragments = std::uint32_t[16];
constexpr int kParts = kRowElements / 16;

__device__ inline std::uint32_t load_u16(std::uint32_t address) {
  std::uint32_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}

// BF16 of the signed bytes 0 and 2, exactly: 128 + the low seven bits, minus 128 or, for negative values, 256.
__device__ inline std::uint32_t exact_pair(std::uint32_t bytes) {
  // (bytes & mask) | 0x43004300, in one instruction.
  const auto masked = [&](std::uint32_t mask) {
    std::uint32_t v;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(v) : "r"(bytes), "r"(mask), "r"(0x43004300U));
    return v;
  };
  std::uint32_t difference;
  asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(difference) : "r"(masked(0x007F007FU)), "r"(masked(0x00800080U)));
  return difference;
}

// A thread's weights of one part from shared memory, where each group has rows of 64 bytes as TMA swizzles them; to
// registers as they are, then to BF16.
template <Stored kStored>
class Expander;

// Rows are features. Half of the lanes read their feature 2 g + 1 first, so that all banks are busy.
template <>
class Expander<Stored::kByFeature> {
 public:
  struct Raw {
    std::uint32_t first[2], second[2];
  };

  __device__ explicit Expander(int warp, int lane) {
    const int g = lane / 4, odd_first = g / 4;
    offset_ = (16 * warp + 2 * g + odd_first) * 64 + (g % 4) * 16 + lane % 4 * 2;
    even_ = odd_first != 0 ? 0x5544 : 0x1100;
  }
  __device__ Raw load(std::uint32_t left, std::uint32_t, int part) const {
    const std::uint32_t at = (left + offset_) ^ (part * 16);
    return {{load_u16(at), load_u16(at + 8)}, {load_u16(at ^ 64), load_u16((at ^ 64) + 8)}};
  }
  __device__ void expand(const Raw& raw, std::uint32_t* a) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      a[2 * i] = exact_pair(__byte_perm(raw.first[i], raw.second[i], even_));
      a[2 * i + 1] = exact_pair(__byte_perm(raw.first[i], raw.second[i], even_ ^ 0x4444));
    }
  }

 private:
  std::uint32_t offset_, even_;
};

// Rows are steps of K, and each has its scale: rounding value times scale differs from rounding their exact product
// only next to ties.
template <>
class Expander<Stored::kByK> {
 public:
  struct Raw {
    std::uint32_t first[2], second[2];  // features 2 g and 2 g + 1 of a step of K, and of the next
    std::uint32_t high[2], low[2];      // of their scales
  };

  __device__ explicit Expander(int warp, int lane)
      : offset_(lane % 4 * 2 * 64 + (warp ^ lane % 4) * 16 + lane / 4 * 2), scales_(lane % 4 * 8) {}

  __device__ Raw load(std::uint32_t left, std::uint32_t scales, int part) const {
    Raw raw;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t k = part * 16 + i * 8, at = left + offset_ + k * 64;
      raw.first[i] = load_u16(at);
      raw.second[i] = load_u16(at + 64);
      asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                   : "=r"(raw.high[i]), "=r"(raw.low[i])
                   : "r"(scales + scales_ + k * 4)
                   : "memory");
    }
    return raw;
  }
  __device__ void expand(const Raw& raw, std::uint32_t* a) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const auto scaled = [&](std::uint32_t selector) {
        const std::uint32_t values = exact_pair(__byte_perm(raw.first[i], raw.second[i], selector));
        std::uint32_t product;
        asm("{ .reg .b32 rest; mul.rn.bf16x2 rest, %1, %3; fma.rn.bf16x2 %0, %1, %2, rest; }"
            : "=r"(product)
            : "r"(values), "r"(raw.high[i]), "r"(raw.low[i]));
        return product;
      };
      a[2 * i] = scaled(0x4400);
      a[2 * i + 1] = scaled(0x5511);
    }
  }

 private:
  std::uint32_t offset_, scales_;
};

// The four warps of a group read stages at their own pace, so each says when it is done.
template <class T>
__device__ void release_by_warp(MixedMemory<T> memory, int stage, int lane) {
  if (lane < kCluster) arrive_remote(memory.empty(stage), lane);
}

// d = the group's features times the tile's tokens, half a stage at a time: while one half is multiplied, the weights
// of the next one are expanded, and read from shared memory a part earlier still.
template <class T, Stored kStored>
__device__ void multiply_mixed(Sums<T::kCols>& d, const Arguments& p, MixedMemory<T> memory, Ring<T>& ring, int group,
                               int lane, const Expander<kStored>& expander) {
  const auto load = [&](int part) {
    return expander.load(memory.left(ring.stage) + group * T::kGroupBytes, memory.scales(ring.stage), part);
  };
  Fragments a;
  wait_barrier(memory.full(ring.stage), ring.parity);
  expander.expand(load(0), a);
  expander.expand(load(1), a + 4);
  auto raw = load(2);
  int previous = 0;
  for (int step = 0; step < p.k_steps; ++step) {
    const int stage = ring.stage;
    const bool last = step + 1 == p.k_steps;
    const auto multiply_half = [&](int half) {
      fence_registers();
#pragma unroll
      for (int part = 2 * half; part < 2 * half + 2; ++part)
        multiply_bf16<T::kCols>(d, a + 4 * part, k_major(memory.right(stage) + part * 32), step > 0 || part > 0);
      commit_multiplies();
    };
    const auto expand = [&](int part) {
      const auto next = load((part + 1) % kParts);
      expander.expand(raw, a + 4 * part);
      raw = next;
    };
    multiply_half(0);
    wait_multiplies<1>();
    if (step > 0) release_by_warp(memory, previous, lane);
    expand(2);
    ring.advance();
    if (!last) wait_barrier(memory.full(ring.stage), ring.parity);
    expand(3);
    multiply_half(1);
    if (!last) {
      wait_multiplies<1>();
      expand(0);
      expand(1);
    }
    previous = stage;
  }
  finish_multiplies<T>(d);
  release_by_warp(memory, previous, lane);
}

// d += op(v)^T u^T, in steps of kRankStep.
template <class T>
__device__ void add_low_rank_mixed(Sums<T::kCols>& d, const Arguments& p, MixedMemory<T> memory, Ring<T>& ring,
                                   int group, int warp, int lane) {
  for (int r = 0; r < p.rank; r += kRankStep, ring.advance()) {
    wait_barrier(memory.full(ring.stage), ring.parity);
    const std::uint32_t left = memory.left(ring.stage) + group * T::kGroupBytes;
    // Features 2 g and 2 g + 1 of step k of the rank.
    const auto features = [&](int k) {
      return load_pair(left + k * 128 + ((2 * warp + lane / 16) ^ (k % 8)) * 16 + lane / 4 % 4 * 4);
    };
    std::uint32_t a[kRankStep / 4];
#pragma unroll
    for (int i = 0; i < kRankStep / 8; ++i) {
      const int k = i * 8 + lane % 4 * 2;
      const std::uint32_t first = features(k), second = features(k + 1);
      a[2 * i] = __byte_perm(first, second, 0x5410);
      a[2 * i + 1] = __byte_perm(first, second, 0x7632);
    }
    fence_registers();
#pragma unroll
    for (int i = 0; i < kRankStep / 16; ++i)
      multiply_bf16<T::kCols>(d, a + 4 * i, k_major(memory.right(ring.stage) + i * 32), true);
    commit_multiplies();
    finish_multiplies<T>(d);
    release_by_warp(memory, ring.stage, lane);
  }
}

template <class T, Stored kStored>
__device__ void consume_mixed(const Arguments& p, MixedMemory<T> memory) {
  const int group = uniform(static_cast<int>(threadIdx.x) / kWarpgroup);
  const int warp = uniform(static_cast<int>(threadIdx.x) / 32 % 4), lane = static_cast<int>(threadIdx.x) % 32;
  Ring<T> ring;
  Writer<T, GroupFeatures<T>> writer(p, memory);
  const Expander<kStored> expander(warp, lane);
  wait_for_kernels_before();
  for (int i = static_cast<int>(blockIdx.x) / kCluster; i < p.schedule.count(); i += gridDim.x / kCluster) {
    int pair, column;
    p.schedule.place(i, pair, column);
    const int feature = (pair * kCluster + static_cast<int>(block_in_cluster())) * T::kRows + group * 64;
    writer.begin(column * T::kCols, feature);
    const FeaturePair mine(feature + warp * 16 + lane / 4 * 2, p.n);
    float scales[2] = {1.0F, 1.0F}, bias[2];
    if constexpr (kStored == Stored::kByFeature) mine.fetch(p.b_scale, DType::F32, 1.0F, scales);
    mine.fetch(p.bias, p.bias_type, 0.0F, bias);
    Sums<T::kCols> d;
    multiply_mixed<T, kStored>(d, p, memory, ring, group, lane, expander);
#pragma unroll
    for (int j = 0; j < T::kCols / 2; ++j)
      d[j] = __float_as_uint(fmaf(value(d[j]), scales[j / 2 % 2], bias[j / 2 % 2]));
    add_low_rank_mixed<T>(d, p, memory, ring, group, warp, lane);
    writer.write(d);
  }
  writer.finish();
}

#endif

template <class T, Stored kStored>
__global__ void __launch_bounds__(T::kThreads, 1) mixed_gemm_kernel(const __grid_constant__ Arguments p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ std::byte shared[];
  const MixedMemory<T> memory{{(shared_address(shared) + T::kAlignment - 1) / T::kAlignment * T::kAlignment}};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < T::kStages; ++stage) {
      init_barrier(memory.full(stage), kStored == Stored::kByK ? 2 : 1);
      init_barrier(memory.empty(stage), T::kGroups * 4 * kCluster);
    }
    for (int i = 0; i < T::kBuffers; ++i) init_barrier(memory.loaded(i), 1);
    publish_barriers();
  }
  synchronize_cluster();
  if (threadIdx.x >= T::kGroups * kWarpgroup) {
    give_registers<T::kGroups == 3 ? 32 : 40>();
    if (threadIdx.x / 32 == T::kGroups * 4 && elect()) produce_mixed<T, kStored>(p, memory);
    if (kStored == Stored::kByK && threadIdx.x / 32 == T::kGroups * 4 + 1) produce_scales(p, memory);
    __syncwarp();
  } else {
    take_registers<T::kGroups == 3 ? 160 : 232>();
    consume_mixed<T, kStored>(p, memory);
  }
  synchronize_cluster();  // until then the other block's copies and arrivals come here
#endif
}

}  // namespace squareq::cuda::sm90
