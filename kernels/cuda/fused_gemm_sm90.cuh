// The kernel of fused_gemm_sm90.cu. Persistent blocks walk over output tiles. In each, one warp fetches operands by TMA
// into a ring of stages, and warpgroups of consumers, 64 rows each, multiply and finish them. Consumers are not held in
// step: while one finishes its tile, the others keep the tensor cores busy. Two blocks form a cluster of tiles one
// below the other; each fetches half of their common right operand for both.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/cuda/activation_math.cuh"
#include "kernels/cuda/early_launch.cuh"
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
  int m, n, k_steps, rank, gelu_begin;  // k_steps: stages along K
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

// Half of a right operand, to both blocks of the cluster.
template <class T>
__device__ void load_right(const CUtensorMap& map, bool mn_major, int k, int column, std::uint32_t to,
                           std::uint32_t barrier, std::uint32_t block) {
  constexpr std::uint16_t kBoth = 3;
  const int half = static_cast<int>(block);
  if (!mn_major) {
    load_box_to_cluster(to + half * (T::kRightBytes / 2), map, k, column + half * (T::kCols / 2), barrier, kBoth);
    return;
  }
  constexpr int kPanelBytes = kRowElements * 128;
#pragma unroll
  for (int panel = 0; panel < T::kCols / kRowElements; ++panel) {
    load_box_to_cluster(to + panel * kPanelBytes + half * (kPanelBytes / 2), map, column + panel * kRowElements,
                        k + half * (kRowElements / 2), barrier, kBoth);
  }
}

template <class T, Operands kOperands>
__device__ void produce(const Arguments& p, Memory<T> memory) {
  constexpr int kStep = kOperands == Operands::kInt8 ? 128 : kRowElements;
  const std::uint32_t block = block_in_cluster();
  const int steps = p.k_steps + p.rank_steps();
  Ring<T> ring;
  wait_for_kernels_before();
  for (int i = static_cast<int>(blockIdx.x) / kCluster; i < p.schedule.count(); i += gridDim.x / kCluster) {
    int pair, column;
    p.schedule.place(i, pair, column);
    const int row = (pair * kCluster + static_cast<int>(block)) * T::kRows;
    for (int step = 0; step < steps; ++step, ring.advance()) {
      const std::uint32_t full = memory.full(ring.stage);
      wait_barrier(memory.empty(ring.stage), ring.parity ^ 1);
      arrive_expecting(full, T::kStageBytes);
      if (step < p.k_steps) {
        load_box(memory.left(ring.stage), p.a, step * kStep, row, full);
        load_right<T>(p.b, kOperands == Operands::kBf16RightMnMajor, step * kStep, column * T::kCols,
                      memory.right(ring.stage), full, block);
      } else {
        const int r = (step - p.k_steps) * kRowElements;
        load_box(memory.left(ring.stage), p.u, r, row, full);
        load_right<T>(p.v, p.v_mn_major, r, column * T::kCols, memory.right(ring.stage), full, block);
      }
    }
  }
}

// The stage may be overwritten, by both blocks of the cluster.
template <class T>
__device__ void release(Memory<T> memory, int stage) {
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  if (thread < kCluster) arrive_remote(memory.empty(stage), thread);
}

template <class T>
__device__ void finish_multiplies(Sums<T::kCols>& d) {
  wait_multiplies<0>();
#pragma unroll
  for (int i = 0; i < T::kCols / 2; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

// A stage of BF16 operands, up to 64 steps of K.
template <class T, bool kMnMajor, bool kCommitEach>
__device__ void multiply_stage(Sums<T::kCols>& d, std::uint32_t left, std::uint32_t right, int steps, bool add) {
#pragma unroll
  for (int i = 0; i < kRowElements / 16; ++i) {
    if (i >= steps) break;
    fence_registers();
    const std::uint64_t b =
        kMnMajor ? mn_major(right + i * 16 * kRowBytes, kRowElements * kRowBytes) : k_major(right + i * 32);
    multiply_bf16<T::kCols, kMnMajor>(d, k_major(left + i * 32), b, add || i > 0);
    if (kCommitEach) commit_multiplies();
  }
}

// d = the tile's rows of a op(b), as int32 or float32.
template <class T, Operands kOperands>
__device__ void multiply_all(Sums<T::kCols>& d, const Arguments& p, Memory<T> memory, Ring<T>& ring, int group) {
  int previous = 0;
  for (int step = 0; step < p.k_steps; ++step, ring.advance()) {
    wait_barrier(memory.full(ring.stage), ring.parity);
    const std::uint32_t left = memory.left(ring.stage) + group * 64 * kRowBytes, right = memory.right(ring.stage);
    if constexpr (kOperands == Operands::kInt8) {
      fence_registers();
#pragma unroll
      for (int i = 0; i < 4; ++i)
        multiply_s8<T::kCols>(d, k_major(left + i * 32), k_major(right + i * 32), step > 0 || i > 0);
    } else {
      multiply_stage<T, kOperands == Operands::kBf16RightMnMajor, false>(d, left, right, 4, step > 0);
    }
    commit_multiplies();
    wait_multiplies<1>();
    if (step > 0) release(memory, previous);
    previous = ring.stage;
  }
  finish_multiplies<T>(d);
  release(memory, previous);
}

// d += u op(v).
template <class T>
__device__ void add_low_rank(Sums<T::kCols>& d, const Arguments& p, Memory<T> memory, Ring<T>& ring, int group) {
  for (int r = 0; r < p.rank; r += kRowElements, ring.advance()) {
    wait_barrier(memory.full(ring.stage), ring.parity);
    const std::uint32_t left = memory.left(ring.stage) + group * 64 * kRowBytes, right = memory.right(ring.stage);
    const int steps = (p.rank - r + 15) / 16;
    if (p.v_mn_major) {
      multiply_stage<T, true, true>(d, left, right, steps, true);
    } else {
      multiply_stage<T, false, true>(d, left, right, steps, true);
    }
    finish_multiplies<T>(d);
    release(memory, ring.stage);
  }
}

// The same in all lanes, and the compiler knows.
__device__ inline int uniform(int v) { return __shfl_sync(0xFFFFFFFFU, v, 0); }

__device__ inline float value(std::uint32_t bits) { return __uint_as_float(bits); }
__device__ inline float as_float(float v) { return v; }
__device__ inline float as_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline float as_float(__half v) { return __half2float(v); }

// The values of a vector [n] for the columns of a tile, dealt out to the lanes of a warp: fetched before a tile's
// products, they arrive meanwhile. `missing` stands for a vector that is not there.
template <class T>
class Vector {
 public:
  __device__ void fetch(const void* from, DType type, float missing, int column, int n) {
    if (from == nullptr) return fill(missing);
    if (type == DType::F32) return fetch(static_cast<const float*>(from), column, n);
    if (type == DType::BF16) return fetch(static_cast<const __nv_bfloat16*>(from), column, n);
    fetch(static_cast<const __half*>(from), column, n);
  }
  // Of the column of d[4 j + i]; all lanes of the warp ask together.
  __device__ float at(int j, int i) const {
    const int holder = j % 8 * 4 + static_cast<int>(threadIdx.x) % 4;
    return __shfl_sync(0xFFFFFFFFU, held_[2 * (j / 8) + i], holder);
  }

 private:
  static constexpr int kHeld = T::kCols / 32;

  __device__ void fill(float value) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) held_[i] = value;
  }
  template <class Element>
  __device__ void fetch(const Element* from, int column, int n) {
    const int first = column + static_cast<int>(threadIdx.x) % 32 * 2;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int c = first + i / 2 * 64 + i % 2;
      held_[i] = c < n ? as_float(from[c]) : 0.0F;
    }
  }

  float held_[kHeld];
};

// Int32 to float32 where they are; scales and bias.
template <class T, bool kInt8>
__device__ void scale(Sums<T::kCols>& d, const Arguments& p, const float (&row_scales)[2], const Vector<T>& scales,
                      const Vector<T>& bias) {
  if (kInt8 || p.a_scale != nullptr) {
#pragma unroll
    for (int i = 0; i < T::kCols / 2; ++i) {
      const float x = kInt8 ? static_cast<float>(static_cast<int>(d[i])) : value(d[i]);
      d[i] = __float_as_uint(x * row_scales[i / 2 % 2]);
    }
  }
  if (p.b_scale == nullptr && p.bias == nullptr) return;
#pragma unroll
  for (int j = 0; j < T::kCols / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float s = scales.at(j, i), b = bias.at(j, i);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        std::uint32_t& x = d[4 * j + 2 * half + i];
        x = __float_as_uint(fmaf(value(x), s, b));
      }
    }
  }
}

__device__ inline std::uint32_t pair_of(float first, float second) {
  std::uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}
__device__ inline std::uint32_t load_pair(std::uint32_t address) {
  std::uint32_t v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}
__device__ inline void store_pair(std::uint32_t address, std::uint32_t v) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}

// Writes the outputs of one warp's 16 rows, chunk by chunk, each chunk of an output being a unit; units take the two
// buffers in turn. The residual of a chunk is fetched into the buffer where the sum replaces it.
template <class T>
class Writer {
 public:
  __device__ Writer(const Arguments& p, Memory<T> memory)
      : p_(p),
        memory_(memory),
        lane_(static_cast<int>(threadIdx.x) % 32),
        first_(static_cast<int>(threadIdx.x) / 32 * 2) {}

  // Where the next tile's values of this warp are. Fetches its first residual.
  __device__ void begin(int row, int column) {
    row_ = row;
    column_ = column;
    if (p_.has_sum) gate_.fetch(p_.gate, DType::F32, 1.0F, column, p_.n);
    if (!p_.has_residual) return;
    if (lane_ == 0) wait_store_reads<0>();
    fetch_residual(0);
    __syncwarp();
  }

  __device__ void write(Sums<T::kCols>& d) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      if (p_.has_sum) {
        write_sum(d, chunk);
        if (!p_.has_y) finish_sum(chunk);
        store(p_.sum, column_ + chunk * T::kChunk);
      }
      if (p_.has_y) {
        open();
        for_pairs(d, chunk, [](std::uint32_t, int, float x, float y) { return pair_of(x, y); });
        if (p_.has_sum) finish_sum(chunk);
        store(p_.y, column_ + chunk * T::kChunk);
      }
      const int act_column = column_ + chunk * T::kChunk - p_.gelu_begin;
      if (p_.has_act && act_column > -T::kChunk) {
        open();
        constexpr Sigmoidal kGelu{.slope = 1.5957691216057308F, .cubic = 0.044715F};
        for_pairs(d, chunk,
                  [&](std::uint32_t, int, float x, float y) { return pair_of(kGelu.value(x), kGelu.value(y)); });
        if (act_column >= 0) {
          store(p_.act, act_column);
        } else {
          store_right_part(-act_column);
        }
      }
    }
  }

  __device__ void finish() {
    if (lane_ == 0) wait_store_reads<0>();
  }

 private:
  static constexpr int kChunks = T::kCols / T::kChunk;

  __device__ int slot() const { return static_cast<int>(unit_ & 1U); }
  __device__ std::uint32_t buffer() const { return memory_.buffer(first_ + slot()); }

  // Of 16 bytes of the unit's buffer, swizzled as TMA does.
  __device__ std::uint32_t address(int row, int piece) const {
    const int swizzle = T::kChunk == 64 ? row % 8 : row / 2 % 4;
    return buffer() + row * (T::kChunk * 2) + (piece ^ swizzle) * 16;
  }
  // The buffer of the unit is free of older stores.
  __device__ void open() {
    if (lane_ == 0) wait_store_reads<1>();
    __syncwarp();
  }
  // Calls f(address, j as in d[4 j + i], value, its right neighbour) and writes the pair that it returns.
  template <class Function>
  __device__ void for_pairs(Sums<T::kCols>& d, int chunk, Function f) {
#pragma unroll
    for (int j = 0; j < T::kChunk / 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t at = address(lane_ / 4 + 8 * half, j) + lane_ % 4 * 4;
        const int i = 4 * (chunk * (T::kChunk / 8) + j) + 2 * half;
        store_pair(at, f(at, chunk * (T::kChunk / 8) + j, value(d[i]), value(d[i + 1])));
      }
    }
  }
  __device__ void write_sum(Sums<T::kCols>& d, int chunk) {
    if (p_.has_residual) {
      wait_barrier(memory_.loaded(first_ + slot()), parities_ >> slot() & 1U);
      parities_ ^= 1U << slot();
    } else {
      open();
    }
    for_pairs(d, chunk, [&](std::uint32_t address, int j, float x, float y) {
      const std::uint32_t old = p_.has_residual ? load_pair(address) : 0U;
      return pair_of(__uint_as_float(old << 16) + gate_.at(j, 0) * x,
                     __uint_as_float(old & 0xFFFF0000U) + gate_.at(j, 1) * y);
    });
  }
  // The other buffer becomes free for the next chunk's residual.
  __device__ void finish_sum(int chunk) {
    if (!p_.has_residual || chunk + 1 == kChunks) return;
    if (lane_ == 0) wait_store_reads<0>();
    ++unit_;
    fetch_residual(chunk + 1);
    --unit_;
  }
  __device__ void fetch_residual(int chunk) {
    if (lane_ != 0) return;
    arrive_expecting(memory_.loaded(first_ + slot()), T::kBufferBytes);
    load_box(buffer(), p_.residual, column_ + chunk * T::kChunk, row_, memory_.loaded(first_ + slot()));
  }
  // The columns of the chunk from `begin` on to the first of `act`: TMA does not store boxes that begin before a
  // matrix.
  __device__ void store_right_part(int begin) {
    __syncwarp();
    for (int i = lane_; i < kWarpRows * T::kChunk; i += 32) {
      const int row = i / T::kChunk, column = i % T::kChunk;
      const bool inside = column >= begin && column - begin < p_.n - p_.gelu_begin && row_ + row < p_.m;
      const std::uint32_t pair = load_pair(address(row, column / 8) + column % 8 / 2 * 4);
      if (inside)
        p_.act_data[(row_ + row) * p_.act_stride + column - begin] =
            static_cast<std::uint16_t>(column % 2 == 0 ? pair : pair >> 16);
    }
    __syncwarp();
    ++unit_;
  }
  __device__ void store(const CUtensorMap& map, int column) {
    fence_for_copies();
    __syncwarp();
    if (lane_ == 0) store_box(map, column, row_, buffer());
    ++unit_;
  }

  const Arguments& p_;
  Memory<T> memory_;
  int lane_, first_;
  int row_ = 0, column_ = 0;
  unsigned unit_ = 0, parities_ = 0;
  Vector<T> gate_;
};

template <class T, Operands kOperands>
__device__ void consume(const Arguments& p, Memory<T> memory) {
  const int warp = uniform(static_cast<int>(threadIdx.x) / 32), group = warp / 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Ring<T> ring;
  Writer<T> writer(p, memory);
  Vector<T> scales, bias;
  wait_for_kernels_before();
  for (int i = static_cast<int>(blockIdx.x) / kCluster; i < p.schedule.count(); i += gridDim.x / kCluster) {
    int pair, column;
    p.schedule.place(i, pair, column);
    const int row = (pair * kCluster + static_cast<int>(block_in_cluster())) * T::kRows + warp * kWarpRows;
    writer.begin(row, column * T::kCols);
    scales.fetch(p.b_scale, DType::F32, 1.0F, column * T::kCols, p.n);
    bias.fetch(p.bias, p.bias_type, 0.0F, column * T::kCols, p.n);
    float row_scales[2] = {1.0F, 1.0F};
    if (p.a_scale != nullptr) {
      for (int half = 0; half < 2; ++half) row_scales[half] = p.a_scale[min(row + lane / 4 + 8 * half, p.m - 1)];
    }
    Sums<T::kCols> d;
    multiply_all<T, kOperands>(d, p, memory, ring, group);
    scale<T, kOperands == Operands::kInt8>(d, p, row_scales, scales, bias);
    add_low_rank<T>(d, p, memory, ring, group);
    writer.write(d);
  }
  writer.finish();
}

#endif

template <class T, Operands kOperands>
__global__ void __launch_bounds__(T::kThreads, 1) fused_gemm_kernel(const __grid_constant__ Arguments p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ std::byte shared[];
  const Memory<T> memory{(shared_address(shared) + T::kAlignment - 1) / T::kAlignment * T::kAlignment};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < T::kStages; ++stage) {
      init_barrier(memory.full(stage), 1);
      init_barrier(memory.empty(stage), T::kGroups * kCluster);
    }
    for (int i = 0; i < T::kBuffers; ++i) init_barrier(memory.loaded(i), 1);
    publish_barriers();
  }
  synchronize_cluster();
  if (threadIdx.x >= T::kGroups * kWarpgroup) {
    give_registers<T::kGroups == 3 ? 32 : 40>();
    if (threadIdx.x / 32 == T::kGroups * 4 && elect()) produce<T, kOperands>(p, memory);
    __syncwarp();
  } else {
    take_registers<T::kGroups == 3 ? 160 : 232>();
    consume<T, kOperands>(p, memory);
  }
  synchronize_cluster();  // until then the other block's copies and arrivals come here
#endif
}

}  // namespace squareq::cuda::sm90
