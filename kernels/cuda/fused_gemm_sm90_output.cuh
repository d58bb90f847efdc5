// How the kernel of fused_gemm_sm90.cu finishes the sums of a tile and writes them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/activation_math.cuh"
#include "kernels/cuda/fused_gemm_sm90_tile.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace squareq::cuda::sm90 {

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

// What a Writer's threads hold of a tile's sums, and the shape of the chunks in which they write it. Here: a warp, its
// 16 rows, chunks of columns.
template <class T>
class WarpRows {
 public:
  static constexpr int kThreads = 32, kRows = kWarpRows, kColumns = T::kChunk, kChunks = T::kCols / kColumns;

  __device__ WarpRows()
      : thread(static_cast<int>(threadIdx.x) % kThreads), team(static_cast<int>(threadIdx.x) / kThreads) {}
  __device__ void synchronize() const { __syncwarp(); }
  // Where a chunk begins.
  __device__ static int row(int) { return 0; }
  __device__ static int column(int chunk) { return chunk * kColumns; }

  __device__ void fetch_gate(const Arguments& p, int column) { gate_.fetch(p.gate, DType::F32, 1.0F, column, p.n); }
  __device__ float gate(int pair, int i) const { return gate_.at(pair, i); }

  // Calls f(row and column in the chunk, what gate() wants, value, its right neighbour).
  template <class Function>
  __device__ void for_pairs(const Sums<T::kCols>& d, int chunk, Function f) const {
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pair = chunk * (kColumns / 8) + j, i = 4 * pair + 2 * half;
        f(thread / 4 + 8 * half, 8 * j + thread % 4 * 2, pair, value(d[i]), value(d[i + 1]));
      }
    }
  }

  int thread, team;

 private:
  Vector<T> gate_;
};

// Writes the outputs of a team of threads, chunk by chunk, each chunk of an output being a unit; units take the team's
// two buffers in turn. The residual of a chunk is fetched into the buffer where the sum replaces it.
template <class T, class Team>
class Writer {
 public:
  __device__ Writer(const Arguments& p, Memory<T> memory) : p_(p), memory_(memory) {}

  // Where the team's values of the next tile are. Fetches its first residual.
  __device__ void begin(int row, int column) {
    row_ = row;
    column_ = column;
    if (p_.has_sum) team_.fetch_gate(p_, column);
    if (!p_.has_residual) return;
    if (leads()) wait_store_reads<0>();
    fetch_residual(0);
    __syncwarp();
  }

  __device__ void write(const Sums<T::kCols>& d) {
#pragma unroll
    for (int chunk = 0; chunk < Team::kChunks; ++chunk) {
      if (p_.has_sum) {
        write_sum(d, chunk);
        if (!p_.has_y) finish_sum(chunk);
        store(p_.sum, column_, chunk);
      }
      if (p_.has_y) {
        open();
        write_pairs(d, chunk, [](std::uint32_t, int, float x, float y) { return pair_of(x, y); });
        if (p_.has_sum) finish_sum(chunk);
        store(p_.y, column_, chunk);
      }
      const int act_column = column_ - p_.gelu_begin;
      if (p_.has_act && act_column + Team::column(chunk) > -Team::kColumns) {
        open();
        constexpr Sigmoidal kGelu{.slope = 1.5957691216057308F, .cubic = 0.044715F};
        write_pairs(d, chunk,
                    [&](std::uint32_t, int, float x, float y) { return pair_of(kGelu.value(x), kGelu.value(y)); });
        if (act_column + Team::column(chunk) >= 0) {
          store(p_.act, act_column, chunk);
        } else {
          store_right_part(act_column, chunk);
        }
      }
    }
  }

  __device__ void finish() {
    if (leads()) wait_store_reads<0>();
  }

 private:
  __device__ bool leads() const { return team_.thread == 0; }
  __device__ int slot() const { return team_.team * 2 + static_cast<int>(unit_ & 1U); }
  __device__ std::uint32_t buffer() const { return memory_.buffer(slot()); }

  // In the unit's buffer, whose pieces of 16 bytes are swizzled as TMA does.
  __device__ std::uint32_t address(int row, int column) const {
    const int swizzle = Team::kColumns == 64 ? row % 8 : row / 2 % 4;
    return buffer() + row * (Team::kColumns * 2) + (column / 8 ^ swizzle) * 16 + column % 8 * 2;
  }
  // The buffer of the unit is free of older stores.
  __device__ void open() {
    if (leads()) wait_store_reads<1>();
    team_.synchronize();
  }
  // Writes the pairs that f(address, what gate() wants, value, its right neighbour) returns.
  template <class Function>
  __device__ void write_pairs(const Sums<T::kCols>& d, int chunk, Function f) {
    team_.for_pairs(d, chunk, [&](int row, int column, int pair, float x, float y) {
      const std::uint32_t at = address(row, column);
      store_pair(at, f(at, pair, x, y));
    });
  }
  __device__ void write_sum(const Sums<T::kCols>& d, int chunk) {
    if (p_.has_residual) {
      wait_barrier(memory_.loaded(slot()), parities_ >> (unit_ & 1U) & 1U);
      parities_ ^= 1U << (unit_ & 1U);
    } else {
      open();
    }
    write_pairs(d, chunk, [&](std::uint32_t address, int pair, float x, float y) {
      const std::uint32_t old = p_.has_residual ? load_pair(address) : 0U;
      return pair_of(__uint_as_float(old << 16) + team_.gate(pair, 0) * x,
                     __uint_as_float(old & 0xFFFF0000U) + team_.gate(pair, 1) * y);
    });
  }
  // The other buffer becomes free for the next chunk's residual.
  __device__ void finish_sum(int chunk) {
    if (!p_.has_residual || chunk + 1 == Team::kChunks) return;
    if (leads()) wait_store_reads<0>();
    ++unit_;
    fetch_residual(chunk + 1);
    --unit_;
  }
  __device__ void fetch_residual(int chunk) {
    if (!leads()) return;
    arrive_expecting(memory_.loaded(slot()), T::kBufferBytes);
    load_box(buffer(), p_.residual, column_ + Team::column(chunk), row_ + Team::row(chunk), memory_.loaded(slot()));
  }
  // The columns of the chunk from the first of `act` on: TMA does not store boxes that begin before a matrix.
  __device__ void store_right_part(int act_column, int chunk) {
    team_.synchronize();
    constexpr int kPairs = Team::kColumns / 2;
    for (int i = team_.thread; i < Team::kRows * kPairs; i += Team::kThreads) {
      const int in_chunk = i % kPairs * 2, column = act_column + Team::column(chunk) + in_chunk;
      const int row = row_ + Team::row(chunk) + i / kPairs;
      const std::uint32_t pair = load_pair(address(i / kPairs, in_chunk));
      if (column >= 0 && column < p_.n - p_.gelu_begin && row < p_.m)
        *reinterpret_cast<std::uint32_t*>(p_.act_data + row * p_.act_stride + column) = pair;
    }
    if (leads()) wait_store_reads<0>();  // open() reckons with a store of every unit
    team_.synchronize();
    ++unit_;
  }
  __device__ void store(const CUtensorMap& map, int column, int chunk) {
    fence_for_copies();
    team_.synchronize();
    if (leads()) store_box(map, column + Team::column(chunk), row_ + Team::row(chunk), buffer());
    ++unit_;
  }

  const Arguments& p_;
  Memory<T> memory_;
  Team team_;
  int row_ = 0, column_ = 0;
  unsigned unit_ = 0, parities_ = 0;
};

}  // namespace squareq::cuda::sm90

#endif
