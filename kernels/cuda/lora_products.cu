#include "kernels/cuda/lora_products.h"

#include <algorithm>
#include <array>

#include "kernels/cuda/check.h"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"

namespace squareq::cuda {
namespace {

constexpr int kWarps = 8;  // of a block
constexpr int kRanks = 16;

// d += a b of one m16n8k16 step, operands as in the PTX manual: of two rows or columns in the row of 8 that belongs to
// lane / 4, and two neighbouring k in the pair of lane % 4.
__device__ void multiply(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// kCount neighbouring values of a row as pairs, zeros where there are none. kWhole: all or none are there, and aligned.
template <int kCount, bool kWhole>
__device__ void load_pairs(const __nv_bfloat16* row, bool inside, int c, int cols, unsigned (&pairs)[kCount / 2]) {
  if constexpr (kWhole) {
    using Words = Pack<unsigned, kCount / 2>;
    const Words words = inside && c < cols ? *reinterpret_cast<const Words*>(row + c) : Words{};
    for (int i = 0; i < kCount / 2; ++i) pairs[i] = words.values[i];
  } else {
    for (int i = 0; i < kCount / 2; ++i) {
      const __nv_bfloat16 zero = __float2bfloat16_rn(0.0F);
      const __nv_bfloat16 low = inside && c + 2 * i < cols ? row[c + 2 * i] : zero;
      const __nv_bfloat16 high = inside && c + 2 * i + 1 < cols ? row[c + 2 * i + 1] : zero;
      pairs[i] = __bfloat16_as_ushort(low) | static_cast<unsigned>(__bfloat16_as_ushort(high)) << 16;
    }
  }
}

// A block computes 32 rows and kTiles * 8 columns of u; its warps share out the features, kChunk at a time. Which of a
// chunk's features a lane holds is up to us, as long as x and w agree: 8 neighbouring ones, for 16-byte loads.
constexpr int kDownRows = 32;
constexpr int kChunk = 32;

template <int kTiles, bool kWhole>
__global__ void __launch_bounds__(kWarps* kWarp)
    project_down_kernel(Rows<const __nv_bfloat16> x, Rows<const __nv_bfloat16> w, Rows<__nv_bfloat16> u, int rows,
                        int features, int ranks) {
  constexpr int kColumns = kTiles * 8;
  __shared__ float shared[kWarps / 2][kDownRows][kColumns];
  const int warp = threadIdx.x / kWarp;
  const int group = threadIdx.x % kWarp / 4;
  const int pair = threadIdx.x % 4;
  const int row = blockIdx.x * kDownRows + group;
  const int column = blockIdx.y * kColumns;
  float sums[2][kTiles][4] = {};
#pragma unroll(kTiles == 2 ? 4 : 2)
  for (int c = warp * kChunk + pair * 8; c - pair * 8 < features; c += kWarps * kChunk) {
    unsigned a[4][4], b[kTiles][4];
    for (int i = 0; i < 4; ++i) {
      const int t = row + i * 8;
      load_pairs<8, kWhole>(x(blockIdx.z, min(t, rows - 1)), t < rows, c, features, a[i]);
    }
    for (int j = 0; j < kTiles; ++j) {
      const int r = column + j * 8 + group;
      load_pairs<8, kWhole>(w(0, min(r, ranks - 1)), r < ranks, c, features, b[j]);
    }
    for (int step = 0; step < 2; ++step) {
      for (int i = 0; i < 2; ++i) {
        const unsigned left[4] = {a[2 * i][2 * step], a[2 * i + 1][2 * step], a[2 * i][2 * step + 1],
                                  a[2 * i + 1][2 * step + 1]};
        for (int j = 0; j < kTiles; ++j) multiply(sums[i][j], left, {b[j][2 * step], b[j][2 * step + 1]});
      }
    }
  }
  // The warps' sums, by halves: the upper half hands over, the lower adds.
  for (int half = kWarps / 2; half > 0; half /= 2) {
    __syncthreads();
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < kTiles; ++j) {
        for (int k = 0; k < 4; ++k) {
          float& place = shared[warp % half][i * 16 + k / 2 * 8 + group][j * 8 + pair * 2 + k % 2];
          if (warp >= half && warp < 2 * half) place = sums[i][j][k];
        }
      }
    }
    __syncthreads();
    if (warp >= half) continue;
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < kTiles; ++j) {
        for (int k = 0; k < 4; ++k) {
          sums[i][j][k] += shared[warp][i * 16 + k / 2 * 8 + group][j * 8 + pair * 2 + k % 2];
        }
      }
    }
  }
  if (warp != 0) return;
  for (int i = 0; i < 4; ++i) {
    const int t = row + i * 8;
    if (t >= rows) continue;
    for (int j = 0; j < kTiles; ++j) {
      const int r = column + j * 8 + pair * 2;
      if (r >= ranks) continue;
      const float* pairs = &sums[i / 2][j][i % 2 * 2];
      *reinterpret_cast<__nv_bfloat162*>(u(blockIdx.z, t) + r) = __floats2bfloat162_rn(pairs[0], pairs[1]);
    }
  }
}

// A block sums 64 columns of `right` with kRanks columns of `left` over one share of the rows; its warps take 16 rows
// in turn. Lanes read 8 neighbouring columns of four rows, whose values are then paired up by rows.
constexpr int kOuterColumns = 64;
constexpr int kOuterRows = 16;

template <bool kWhole>
__global__ void __launch_bounds__(kWarps* kWarp)
    outer_kernel(Rows<const __nv_bfloat16> left, Rows<const __nv_bfloat16> right, int rows, int share, int shares,
                 int ranks, int cols, float* __restrict__ pieces) {
  __shared__ float shared[kWarps / 2][kRanks][kOuterColumns];
  const int warp = threadIdx.x / kWarp;
  const int group = threadIdx.x % kWarp / 4;
  const int pair = threadIdx.x % 4;
  const int sample = blockIdx.y / shares;
  const int first = blockIdx.y % shares * share;
  const int last = min(rows, first + share);
  const int c = blockIdx.x * kOuterColumns + group * 8;
  const int rank = blockIdx.z * kRanks;
  float sums[8][4] = {};
#pragma unroll 2
  for (int t = first + warp * kOuterRows; t < last; t += kWarps * kOuterRows) {
    unsigned values[4][4], ends[4][1];
    for (int i = 0; i < 4; ++i) {
      const int row = t + i / 2 * 8 + pair * 2 + i % 2;
      const int clamped = min(row, rows - 1);
      load_pairs<8, kWhole>(right(sample, clamped), row < last, c, cols, values[i]);
      load_pairs<2, true>(left(sample, clamped), row < last, rank + group * 2, ranks, ends[i]);
    }
    const unsigned a[4] = {__byte_perm(ends[0][0], ends[1][0], 0x5410), __byte_perm(ends[0][0], ends[1][0], 0x7632),
                           __byte_perm(ends[2][0], ends[3][0], 0x5410), __byte_perm(ends[2][0], ends[3][0], 0x7632)};
    for (int j = 0; j < 8; ++j) {
      const unsigned half = j % 2 == 0 ? 0x5410 : 0x7632;
      multiply(sums[j], a,
               {__byte_perm(values[0][j / 2], values[1][j / 2], half),
                __byte_perm(values[2][j / 2], values[3][j / 2], half)});
    }
  }
  // Element k of sums[j]: rank 2 group + k / 2 and column 8 (2 pair + k % 2) + j, by the way the values were paired.
  const auto place = [&](float(&at)[kRanks][kOuterColumns], int j, int k) -> float& {
    return at[group * 2 + k / 2][(pair * 2 + k % 2) * 8 + j];
  };
  for (int half = kWarps / 2; half > 0; half /= 2) {
    __syncthreads();
    for (int j = 0; j < 8; ++j) {
      for (int k = 0; k < 4; ++k) {
        if (warp >= half && warp < 2 * half) place(shared[warp - half], j, k) = sums[j][k];
      }
    }
    __syncthreads();
    if (warp >= half) continue;
    for (int j = 0; j < 8; ++j) {
      for (int k = 0; k < 4; ++k) sums[j][k] += place(shared[warp], j, k);
    }
  }
  if (warp == 0) {
    for (int j = 0; j < 8; ++j) {
      for (int k = 0; k < 4; ++k) place(shared[0], j, k) = sums[j][k];
    }
  }
  __syncthreads();
  pieces += (static_cast<std::int64_t>(blockIdx.y) * ranks + rank) * cols;
  for (int i = threadIdx.x; i < kRanks * kOuterColumns; i += kWarps * kWarp) {
    const int column = blockIdx.x * kOuterColumns + i % kOuterColumns;
    if (column < cols)
      pieces[i / kOuterColumns * std::int64_t{cols} + column] = shared[0][i / kOuterColumns][i % kOuterColumns];
  }
}

// The branches of a linear as kernels see them; a launch takes at most kBranches of them.
constexpr std::size_t kBranches = 32;

struct Branch {
  const float *a, *b;
  float *da, *db;  // null: frozen
  std::int64_t a_stride, b_stride, da_stride, db_stride;
  int first, ranks;          // rows of the stack
  int row_begin, row_count;  // of the linear
  float scale;
};

struct Branches {
  std::array<Branch, kBranches> list;
  int count = 0;
  int end = 0;  // of the rows of the stack that the list answers for
};

// Calls launch(branches) for groups of branches whose rows follow each other up to `ranks`.
template <class Launch>
void for_branches(std::span<const LoraBranch> lora, std::int64_t ranks, Launch launch) {
  std::int64_t first = 0;
  while (!lora.empty()) {
    Branches group;
    for (const LoraBranch& branch : lora.first(std::min(lora.size(), kBranches))) {
      Branch& to = group.list[static_cast<std::size_t>(group.count++)];
      to = {.a = branch.a.f32(),
            .b = branch.b.f32(),
            .da = branch.trained() ? branch.da.f32() : nullptr,
            .db = branch.trained() ? branch.db.f32() : nullptr,
            .a_stride = branch.a.row_stride,
            .b_stride = branch.b.row_stride,
            .da_stride = branch.da.row_stride,
            .db_stride = branch.db.row_stride,
            .first = static_cast<int>(first),
            .ranks = static_cast<int>(branch.rank()),
            .row_begin = static_cast<int>(branch.row_begin),
            .row_count = static_cast<int>(branch.b.rows),
            .scale = branch.scale};
      first += branch.rank();
    }
    lora = lora.subspan(static_cast<std::size_t>(group.count));
    group.end = static_cast<int>(lora.empty() ? ranks : first);
    launch(group);
  }
}

constexpr int kStackThreads = 64;

// A thread writes one column of a (blockIdx.y = 0) or of b, for one branch (blockIdx.z), the last of which also writes
// the zeros of the padding.
__global__ void __launch_bounds__(kStackThreads)
    stack_kernel(const __grid_constant__ Branches branches, Rows<__nv_bfloat16> a, Rows<__nv_bfloat16> b, int in,
                 int out) {
  const int c = blockIdx.x * kStackThreads + threadIdx.x;
  if (c >= (blockIdx.y == 0 ? in : out)) return;
  const Branch& branch = branches.list[blockIdx.z];
  const int row = c - branch.row_begin;
  const bool reached = blockIdx.y == 0 || (row >= 0 && row < branch.row_count);
  __nv_bfloat16* to = (blockIdx.y == 0 ? a.data : b.data) + c;
  const std::int64_t stride = blockIdx.y == 0 ? a.row_stride : b.row_stride;
#pragma unroll 8
  for (int r = 0; r < branch.ranks; ++r) {
    float value = 0.0F;
    if (blockIdx.y == 0) {
      value = branch.a[r * branch.a_stride + c];
    } else if (reached) {
      value = branch.scale * branch.b[row * branch.b_stride + r];
    }
    to[(branch.first + r) * stride] = __float2bfloat16_rn(value);
  }
  if (static_cast<int>(blockIdx.z) != branches.count - 1) return;
  for (int r = branch.first + branch.ranks; r < branches.end; ++r) to[r * stride] = __float2bfloat16_rn(0.0F);
}

// A thread adds one column of da (blockIdx.y = 0) or row of db of one branch (blockIdx.z).
__global__ void __launch_bounds__(kStackThreads)
    gradients_kernel(const __grid_constant__ Branches branches, const float* __restrict__ da_pieces, int da_count,
                     const float* __restrict__ db_pieces, int db_count, int ranks, int in, int out) {
  const Branch& branch = branches.list[blockIdx.z];
  const int c = blockIdx.x * kStackThreads + threadIdx.x;
  if (branch.da == nullptr || c >= (blockIdx.y == 0 ? in : branch.row_count)) return;
  const int cols = blockIdx.y == 0 ? in : out;
  const float* pieces = blockIdx.y == 0 ? da_pieces + c : db_pieces + branch.row_begin + c;
  const int count = blockIdx.y == 0 ? da_count : db_count;
#pragma unroll 4
  for (int r = 0; r < branch.ranks; ++r) {
    float sum = 0.0F;
    for (int piece = 0; piece < count; ++piece) {
      sum += pieces[(static_cast<std::int64_t>(piece) * ranks + branch.first + r) * cols];
    }
    if (blockIdx.y == 0) {
      branch.da[r * branch.da_stride + c] += sum;
    } else {
      branch.db[c * branch.db_stride + r] += branch.scale * sum;
    }
  }
}

// Rows of each share of a sample, a multiple of kOuterRows: enough blocks for every multiprocessor, and few pieces.
std::int64_t share_of(const ConstView& shape) {
  constexpr std::int64_t kBlocks = 384;
  const std::int64_t strips = ceil_div(shape.cols, kOuterColumns) * std::max<std::int64_t>(shape.batch, 1);
  const std::int64_t shares = std::clamp<std::int64_t>(kBlocks / strips, 1, 16);
  const std::int64_t step = kOuterRows * kWarps;
  return std::max<std::int64_t>(ceil_div(ceil_div(shape.rows, shares), step) * step, step);
}

std::int64_t shares_of(const ConstView& shape) { return ceil_div(shape.rows, share_of(shape)); }

bool is_bf16(std::initializer_list<ConstView> views) {
  return std::all_of(views.begin(), views.end(), [](const ConstView& v) { return v.dtype == DType::BF16; });
}

}  // namespace

void stack_adapters(std::span<const LoraBranch> lora, const StackedAdapters& to, cudaStream_t stream) {
  require(is_bf16({to.a, to.b}) && to.a.rows == adapter_columns(lora) && to.b.rows == to.a.rows,
          "stack_adapters: shapes");
  for_branches(lora, to.a.rows, [&](const Branches& branches) {
    const dim3 blocks(ceil_div(std::max(to.a.cols, to.b.cols), kStackThreads), 2,
                      static_cast<unsigned>(branches.count));
    stack_kernel<<<blocks, kStackThreads, 0, stream>>>(branches, rows_of<__nv_bfloat16>(to.a),
                                                       rows_of<__nv_bfloat16>(to.b), static_cast<int>(to.a.cols),
                                                       static_cast<int>(to.b.cols));
    check_launch("stack_adapters");
  });
}

void project_down(ConstView x, ConstView w, View u, cudaStream_t stream) {
  require(is_bf16({x, w, u}) && u.batch == x.batch && u.rows == x.rows && w.cols == x.cols && w.rows == u.cols &&
              u.cols % kRanks == 0 && u.row_stride % 2 == 0,
          "project_down: shapes");
  if (u.count() == 0) return;
  const auto launch = [&]<int kTiles>() {
    const dim3 blocks(ceil_div(x.rows, kDownRows), ceil_div(u.cols, kTiles * 8), static_cast<unsigned>(x.batch));
    const auto run = [&](auto kernel) {
      kernel<<<blocks, kWarps * kWarp, 0, stream>>>(rows_of<__nv_bfloat16>(x), rows_of<__nv_bfloat16>(w),
                                                    rows_of<__nv_bfloat16>(u), static_cast<int>(x.rows),
                                                    static_cast<int>(x.cols), static_cast<int>(u.cols));
    };
    wide({x, w}) ? run(project_down_kernel<kTiles, true>) : run(project_down_kernel<kTiles, false>);
  };
  if (u.cols <= 16) {
    launch.operator()<2>();
  } else if (u.cols <= 32) {
    launch.operator()<4>();
  } else {
    launch.operator()<8>();
  }
  check_launch("project_down");
}

std::int64_t outer_pieces(const ConstView& shape) { return shape.batch * shares_of(shape); }

void sum_outer(ConstView left, ConstView right, View pieces, cudaStream_t stream) {
  require(is_bf16({left, right}) && left.batch == right.batch && left.rows == right.rows && left.cols % kRanks == 0 &&
              left.row_stride % 2 == 0 && pieces.contiguous() && pieces.dtype == DType::F32 &&
              pieces.batch == outer_pieces(right) && pieces.rows == left.cols && pieces.cols == right.cols,
          "sum_outer: shapes");
  if (right.count() == 0) return;
  const dim3 blocks(ceil_div(right.cols, kOuterColumns), static_cast<unsigned>(pieces.batch),
                    static_cast<unsigned>(left.cols / kRanks));
  const auto run = [&](auto kernel) {
    kernel<<<blocks, kWarps * kWarp, 0, stream>>>(rows_of<__nv_bfloat16>(left), rows_of<__nv_bfloat16>(right),
                                                  static_cast<int>(right.rows), static_cast<int>(share_of(right)),
                                                  static_cast<int>(shares_of(right)), static_cast<int>(left.cols),
                                                  static_cast<int>(right.cols), reinterpret_cast<float*>(pieces.data));
  };
  wide({right}) ? run(outer_kernel<true>) : run(outer_kernel<false>);
  check_launch("sum_outer");
}

void add_adapter_gradients(std::span<const LoraBranch> lora, const View& da_pieces, const View& db_pieces,
                           cudaStream_t stream) {
  for_branches(lora, da_pieces.rows, [&](const Branches& branches) {
    const dim3 blocks(ceil_div(std::max(da_pieces.cols, db_pieces.cols), kStackThreads), 2,
                      static_cast<unsigned>(branches.count));
    gradients_kernel<<<blocks, kStackThreads, 0, stream>>>(
        branches, reinterpret_cast<const float*>(da_pieces.data), static_cast<int>(da_pieces.batch),
        reinterpret_cast<const float*>(db_pieces.data), static_cast<int>(db_pieces.batch),
        static_cast<int>(da_pieces.rows), static_cast<int>(da_pieces.cols), static_cast<int>(db_pieces.cols));
    check_launch("add_adapter_gradients");
  });
}

}  // namespace squareq::cuda
