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
    if (lane_ == 0) wait_store_reads<0>();  // as open() counts the stores of two units
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

}  // namespace squareq::cuda::sm90

#endif
