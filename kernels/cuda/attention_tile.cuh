// Tiles of bfloat16 matrices in shared memory and their products on tensor cores, for sm_80 and newer: cp.async copies,
// ldmatrix reads, mma.sync.m16n8k16 multiplies (PTX ISA, "Matrix multiply-accumulate operation using mma instruction").
//
// Of a 16 x 8 block of sums, a lane holds c[0], c[1] in row lane / 4 and c[2], c[3] eight rows below, both in columns
// 2 * (lane % 4) and the next. Two such blocks side by side, rounded to bfloat16, are the 16 x 16 left operand of
// another product: so probabilities never leave their registers.
#pragma once

#include <cstdint>

#include "kernels/cuda/tensor.cuh"

namespace squareq::cuda::tile {

constexpr int kWarp = 32;
constexpr float kLog2E = 1.4426950408889634F, kLn2 = 0.6931471805599453F;

__device__ inline int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp() { return static_cast<int>(threadIdx.x) / kWarp; }

// 2^x with a relative error of 2^-22; 2^-inf = 0 and, unlike exp2f, subnormal results are 0.
__device__ inline float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two neighbouring elements, the first in the lower half.
__device__ inline std::uint32_t pair(float first, float second) {
  std::uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}

using Left = std::uint32_t[4];   // 16 x 16
using Right = std::uint32_t[4];  // 16 x 16: two 16 x 8 operands side by side
using Sums = float[4];           // 16 x 8

// c += a * b for the left (0) or the right (1) half of b.
__device__ inline void multiply_add(Sums& c, const Left& a, const Right& b, int half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[2 * half]), "r"(b[2 * half + 1]));
}

// Two blocks of sums side by side as a left operand.
__device__ inline void round_to(Left& a, const Sums& left, const Sums& right) {
  a[0] = pair(left[0], left[1]);
  a[1] = pair(left[2], left[3]);
  a[2] = pair(right[0], right[1]);
  a[3] = pair(right[2], right[3]);
}

// Copies 16 bytes, or writes 16 zero bytes.
__device__ inline void copy_chunk(std::uint32_t to, const void* from, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(wanted ? 16 : 0) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of this thread's committed groups are under way.
template <int kPending>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ inline std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// Rows of one head of one sample in global memory.
struct Source {
  const __nv_bfloat16* data;
  std::int64_t row_stride;
  int rows, features;  // features is a multiple of 8, and rows start at multiples of 16 bytes
};

__device__ inline Source source(const Rows<const __nv_bfloat16>& x, int sample, int head, int rows, int features) {
  return {x(sample, 0) + static_cast<std::int64_t>(head) * features, x.row_stride, rows, features};
}

// [kRows, kFeatures] in shared memory. Chunk c (16 bytes) of row r stands at place c ^ swizzle(r) of the row, so that
// the eight rows that ldmatrix reads at a time lie in different banks. The memory starts at a multiple of the row's
// bytes: moving by features then flips address bits that moving by rows never touches.
template <int kRows_, int kFeatures_>
struct Tile {
  static constexpr int kRows = kRows_, kFeatures = kFeatures_;
  static constexpr int kChunks = kFeatures / 8, kRowBytes = kFeatures * 2, kBytes = kRows * kRowBytes;
  static_assert(kRows % 16 == 0 && (kChunks == 4 || kChunks % 8 == 0));

  static __device__ std::uint32_t offset(int row, int chunk) {
    const int swizzle = kChunks == 4 ? (row >> 1) & 3 : row & 7;
    return static_cast<std::uint32_t>(row * kRowBytes + ((chunk ^ swizzle) << 4));
  }

  // Where this lane points ldmatrix for the 16 x 16 block at the origin of the tile at `base`, read as a left operand,
  // or transposed as a right operand whose rows are the tile's (x * tile).
  static __device__ std::uint32_t rows_first(std::uint32_t base) { return base + offset(lane() % 16, lane() / 16); }
  // The same for a right operand whose columns are the tile's rows (x * tile^T).
  static __device__ std::uint32_t features_first(std::uint32_t base) {
    return base + offset(lane() / 16 * 8 + lane() % 8, lane() / 8 % 2);
  }
  // Moves such an address to another block.
  static __device__ std::uint32_t block(std::uint32_t origin, int row, int feature) {
    return (origin ^ static_cast<std::uint32_t>(feature * 2)) + static_cast<std::uint32_t>(row * kRowBytes);
  }

  // Starts to copy kRows rows from `row` on, and kFeatures features from `feature` on; zeros where there are none.
  template <int kThreads>
  static __device__ void load(std::uint32_t base, const Source& from, int row, int feature = 0) {
    constexpr int kStep = kThreads / kChunks;
    static_assert(kThreads % kChunks == 0 && kRows % kStep == 0);
    const int first = static_cast<int>(threadIdx.x) / kChunks, chunk = static_cast<int>(threadIdx.x) % kChunks;
    const bool inside = feature + chunk * 8 < from.features;
    const __nv_bfloat16* at = from.data + (row + first) * from.row_stride + feature + chunk * 8;
#pragma unroll
    for (int r = 0; r < kRows; r += kStep) {
      const bool wanted = inside && row + first + r < from.rows;
      copy_chunk(base + offset(first + r, chunk), wanted ? at : from.data, wanted);
      at += kStep * from.row_stride;
    }
  }
};

// Makes the addresses of blocks something to compute anew in each round of a loop: held throughout, they would take
// dozens of registers.
template <class... Addresses>
__device__ void keep_in_loop(Addresses&... a) {
  (..., [&] { asm volatile("" : "+r"(a)); }());
}

__device__ inline void read(std::uint32_t (&to)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}
__device__ inline void read_transposed(std::uint32_t (&to)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

template <int kBlocks, int kColumnBlocks>
__device__ void clear(Sums (&c)[kBlocks][kColumnBlocks]) {
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int n = 0; n < kColumnBlocks; ++n) c[m][n][0] = c[m][n][1] = c[m][n][2] = c[m][n][3] = 0.0F;
  }
}

// c = a b^T over all features: 16 * kBlocks rows of tile A against 8 * kColumnBlocks rows of tile B. `a` and `b` are
// this lane's addresses, rows_first and features_first.
template <class A, class B, int kBlocks, int kColumnBlocks>
__device__ void product_transposed(Sums (&c)[kBlocks][kColumnBlocks], std::uint32_t a, std::uint32_t b) {
  static_assert(A::kFeatures == B::kFeatures && kColumnBlocks % 2 == 0);
  clear(c);
#pragma unroll 4
  for (int k = 0; k < A::kFeatures; k += 16) {
    Left left[kBlocks];
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) read(left[m], A::block(a, m * 16, k));
#pragma unroll
    for (int n = 0; n < kColumnBlocks; n += 2) {
      Right right;
      read(right, B::block(b, n * 8, k));
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        multiply_add(c[m][n], left[m], right, 0);
        multiply_add(c[m][n + 1], left[m], right, 1);
      }
    }
  }
}

// The same with the left operands, of 16 features each, in registers.
template <class B, int kSteps, int kColumnBlocks>
__device__ void product_transposed(Sums (&c)[1][kColumnBlocks], const Left (&a)[kSteps], std::uint32_t b) {
  static_assert(B::kFeatures == kSteps * 16 && kColumnBlocks % 2 == 0);
  clear(c);
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int n = 0; n < kColumnBlocks; n += 2) {
      Right right;
      read(right, B::block(b, n * 8, k * 16));
      multiply_add(c[0][n], a[k], right, 0);
      multiply_add(c[0][n + 1], a[k], right, 1);
    }
  }
}

// c += round(a) b: sums a [16 * kBlocks, 8 * kInner] against the first 8 * kInner rows of tile B. `b` is this lane's
// address rows_first.
template <class B, int kBlocks, int kInner, int kColumnBlocks>
__device__ void add_product(Sums (&c)[kBlocks][kColumnBlocks], const Sums (&a)[kBlocks][kInner], std::uint32_t b) {
  static_assert(B::kRows == kInner * 8 && B::kFeatures == kColumnBlocks * 8);
#pragma unroll
  for (int k = 0; k < kInner; k += 2) {
    Left left[kBlocks];
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) round_to(left[m], a[m][k], a[m][k + 1]);
#pragma unroll
    for (int n = 0; n < kColumnBlocks; n += 2) {
      Right right;
      read_transposed(right, B::block(b, k * 8, n * 8));
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        multiply_add(c[m][n], left[m], right, 0);
        multiply_add(c[m][n + 1], left[m], right, 1);
      }
    }
  }
}

// Writes factor[row] * c, rounded, to rows [row, row + 16) of one head: `to` points at the head's first row.
template <int kColumnBlocks>
__device__ void store(const Sums (&c)[kColumnBlocks], __nv_bfloat16* to, std::int64_t row_stride, int row, int rows,
                      int columns, float factor_above, float factor_below) {
  const int above = row + lane() / 4, below = above + 8;
#pragma unroll
  for (int n = 0; n < kColumnBlocks; ++n) {
    const int column = n * 8 + lane() % 4 * 2;
    if (column >= columns) continue;
    if (above < rows) {
      *reinterpret_cast<std::uint32_t*>(to + above * row_stride + column) =
          pair(factor_above * c[n][0], factor_above * c[n][1]);
    }
    if (below < rows) {
      *reinterpret_cast<std::uint32_t*>(to + below * row_stride + column) =
          pair(factor_below * c[n][2], factor_below * c[n][3]);
    }
  }
}

// factor * c where a lane's rows count, else zeros (whatever c is).
template <int kColumnBlocks>
__device__ void store_or_zero(Sums (&c)[kColumnBlocks], __nv_bfloat16* to, std::int64_t row_stride, int row, int rows,
                              int columns, float factor, bool above_counts, bool below_counts) {
#pragma unroll
  for (int n = 0; n < kColumnBlocks; ++n) {
    if (!above_counts) c[n][0] = c[n][1] = 0.0F;
    if (!below_counts) c[n][2] = c[n][3] = 0.0F;
  }
  store(c, to, row_stride, row, rows, columns, factor, factor);
}

// Which keys a query sees. Samples beyond kSamples go to another launch.
struct Sight {
  static constexpr int kSamples = 64;

  int length = 0;
  bool causal = false;                              // query i sees keys 0..i
  int hidden_begin[kSamples] = {}, hidden_end = 0;  // keys of each sample that nobody sees; none where begin >= end

  __device__ bool hidden(int sample, int key) const {
    return key >= length || (key >= hidden_begin[sample] && key < hidden_end);
  }
};

// The blocks of kKeys keys that some query before `query_end` may see: count of them, at(0), at(1), ...
template <int kKeys>
struct KeyBlocks {
  __device__ KeyBlocks(const Sight& sight, int sample, int query_end) {
    const int end = sight.causal ? min(query_end, sight.length) : sight.length;
    const int blocks = (end + kKeys - 1) / kKeys;
    skip_begin = (sight.hidden_begin[sample] + kKeys - 1) / kKeys;
    skipped = max(0, min(sight.hidden_end / kKeys, blocks) - skip_begin);
    count = blocks - skipped;
  }
  // The first key of block i.
  __device__ int at(int i) const { return (i < skip_begin ? i : i + skipped) * kKeys; }

  int skip_begin, skipped, count;
};

// Sets scores that must not count to minus infinity: those of keys from `key` on, and rows from `query` on.
template <int kBlocks, int kColumnBlocks>
__device__ void hide(Sums (&scores)[kBlocks][kColumnBlocks], const Sight& sight, int sample, int query, int key) {
  const int end = key + kColumnBlocks * 8;
  const bool some_hidden = end > sight.length || (sight.hidden_begin[sample] < end && key < sight.hidden_end);
  if (!some_hidden && !(sight.causal && end - 1 > query)) return;
#pragma unroll
  for (int n = 0; n < kColumnBlocks; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int column = key + n * 8 + lane() % 4 * 2 + e % 2;
      const bool hidden = sight.hidden(sample, column);
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        const int row = query + m * 16 + lane() / 4 + e / 2 * 8;
        if (hidden || (sight.causal && column > row)) scores[m][n][e] = -INFINITY;
      }
    }
  }
}

}  // namespace squareq::cuda::tile
