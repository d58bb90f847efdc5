#include "kernels/cuda/lora_products.h"

#include <algorithm>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"

namespace squareq::cuda {
namespace {

constexpr int kRanks = 16;

// d += a b of one m16n8k16 step, operands as in the PTX manual: of two rows or columns in the row of 8 that belongs to
// lane / 4, and two neighbouring k in the pair of lane % 4.
__device__ void multiply(float* d, const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The sums over the block's 2 * kHalf warps, in order: each thread gets kCount of the kSums that belong to its lane,
// number which(i) as its i-th. Lanes keep to themselves, so that no two use the same bank.
template <int kSums, int kHalf, int kCount, class Which>
__device__ void add_warps(const float (&sums)[kSums], float (&shared)[kHalf][kSums][kWarp], Which which,
                          float (&totals)[kCount]) {
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  for (int i = 0; i < kSums && warp >= kHalf; ++i) shared[warp - kHalf][i][lane] = sums[i];
  __syncthreads();
  for (int i = 0; i < kSums && warp < kHalf; ++i) shared[warp][i][lane] += sums[i];
  __syncthreads();
  for (int i = 0; i < kCount; ++i) {
    totals[i] = 0.0F;
    for (int half = 0; half < kHalf; ++half) totals[i] += shared[half][which(i)][lane];
  }
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

// A block computes kRowTiles * 16 rows and kTiles * 8 columns of u; its warps share out the features, kChunk at a time.
// Which of a chunk's features a lane holds is up to us, as long as x and w agree: 8 neighbouring ones, for 16-byte
// loads. Fewer rows are more blocks, and read w more often.
constexpr int kChunk = 32;
constexpr int kDownWarps = 8;

template <int kRowTiles, int kTiles, bool kWhole>
__global__ void __launch_bounds__(kDownWarps* kWarp, kTiles == 2 && kWhole ? 3 : 1)
    project_down_kernel(Rows<const __nv_bfloat16> x, Rows<const __nv_bfloat16> w, Rows<__nv_bfloat16> u, int rows,
                        int features, int ranks) {
  constexpr int kSums = kRowTiles * kTiles * 4;
  __shared__ float shared[kDownWarps / 2][kSums][kWarp];
  const int warp = threadIdx.x / kWarp;
  const int group = threadIdx.x % kWarp / 4;
  const int pair = threadIdx.x % 4;
  const int row = blockIdx.x * kRowTiles * 16 + group;
  const int column = blockIdx.y * kTiles * 8;
  float sums[kSums] = {};
  constexpr int kAtOnce = kTiles == 2 ? 3 : 2;  // chunks that are on their way before the first is used
  constexpr int kStep = kDownWarps * kChunk;
  for (int begin = warp * kChunk; begin < features; begin += kAtOnce * kStep) {
    unsigned a[kAtOnce][kRowTiles * 2][4], b[kAtOnce][kTiles][4];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const int c = begin + n * kStep + pair * 8;
      for (int i = 0; i < kRowTiles * 2; ++i) {
        const int t = row + i * 8;
        load_pairs<8, kWhole>(x(blockIdx.z, min(t, rows - 1)), t < rows, c, features, a[n][i]);
      }
      for (int j = 0; j < kTiles; ++j) {
        const int r = column + j * 8 + group;
        load_pairs<8, kWhole>(w(0, min(r, ranks - 1)), r < ranks, c, features, b[n][j]);
      }
    }
#pragma unroll
    for (int step = 0; step < 2 * kAtOnce; ++step) {
      const auto& left = a[step / 2];
      const auto& right = b[step / 2];
      const int half = step % 2 * 2;
      for (int i = 0; i < kRowTiles; ++i) {
        const unsigned both[4] = {left[2 * i][half], left[2 * i + 1][half], left[2 * i][half + 1],
                                  left[2 * i + 1][half + 1]};
        for (int j = 0; j < kTiles; ++j) {
          multiply(&sums[(i * kTiles + j) * 4], both, {right[j][half], right[j][half + 1]});
        }
      }
    }
  }
  constexpr int kCount = kSums / kDownWarps;
  float totals[kCount];
  add_warps(
      sums, shared, [&](int i) { return warp * kCount + i; }, totals);
  for (int i = 0; i < kCount; ++i) {
    const int tile = (warp * kCount + i) / 4;
    const int k = (warp * kCount + i) % 4;
    const int t = row + tile / kTiles * 16 + k / 2 * 8;
    const int r = column + tile % kTiles * 8 + pair * 2 + k % 2;
    if (t < rows && r < ranks) u(blockIdx.z, t)[r] = __float2bfloat16_rn(totals[i]);
  }
}

// A block sums 64 columns of `right` with kRanks columns of `left` over one share of the rows; its warps take 16 rows
// in turn. Lanes read 8 neighbouring columns of four rows, whose values are then paired up by rows.
constexpr int kOuterColumns = 64;
constexpr int kOuterRows = 16;
constexpr int kOuterWarps = 4;

template <bool kWhole>
__global__ void __launch_bounds__(kOuterWarps* kWarp, kWhole ? 5 : 1)
    outer_kernel(Rows<const __nv_bfloat16> left, Rows<const __nv_bfloat16> right, int rows, int share, int shares,
                 int ranks, int cols, float* __restrict__ pieces) {
  __shared__ float shared[kOuterWarps / 2][32][kWarp];
  const int warp = threadIdx.x / kWarp;
  const int group = threadIdx.x % kWarp / 4;
  const int pair = threadIdx.x % 4;
  const int sample = blockIdx.y / shares;
  const int first = blockIdx.y % shares * share;
  const int last = min(rows, first + share);
  const int c = blockIdx.x * kOuterColumns + group * 8;
  const int rank = blockIdx.z * kRanks;
  const __nv_bfloat16* left_rows = left(sample, 0);
  const __nv_bfloat16* right_rows = right(sample, 0);
  const auto left_stride = static_cast<unsigned>(left.row_stride),
             right_stride = static_cast<unsigned>(right.row_stride);
  float sums[32] = {};
  constexpr int kAtOnce = 2;
  constexpr int kStep = kOuterWarps * kOuterRows;
  for (int begin = first + warp * kOuterRows; begin < last; begin += kAtOnce * kStep) {
    unsigned values[kAtOnce][4][4], ends[kAtOnce][4][1];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      for (int i = 0; i < 4; ++i) {
        const int row = begin + n * kStep + i / 2 * 8 + pair * 2 + i % 2;
        const unsigned clamped = min(row, rows - 1);
        load_pairs<8, kWhole>(right_rows + clamped * right_stride, row < last, c, cols, values[n][i]);
        load_pairs<2, true>(left_rows + clamped * left_stride, row < last, rank + group * 2, ranks, ends[n][i]);
      }
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const auto& v = values[n];
      const auto& e = ends[n];
      const unsigned a[4] = {__byte_perm(e[0][0], e[1][0], 0x5410), __byte_perm(e[0][0], e[1][0], 0x7632),
                             __byte_perm(e[2][0], e[3][0], 0x5410), __byte_perm(e[2][0], e[3][0], 0x7632)};
      for (int j = 0; j < 8; ++j) {
        const unsigned half = j % 2 == 0 ? 0x5410 : 0x7632;
        multiply(&sums[j * 4], a,
                 {__byte_perm(v[0][j / 2], v[1][j / 2], half), __byte_perm(v[2][j / 2], v[3][j / 2], half)});
      }
    }
  }
  // By the way the values were paired, sum 4 j + k belongs to rank 2 group + k / 2 and column 8 (2 pair + k % 2) + j.
  // Each warp ends up with eight neighbouring columns.
  float totals[8];
  add_warps(
      sums, shared, [&](int i) { return i * 4 + warp; }, totals);
  const int column = blockIdx.x * kOuterColumns + (pair * 2 + warp % 2) * 8;
  pieces += (static_cast<std::int64_t>(blockIdx.y) * ranks + rank + group * 2 + warp / 2) * cols + column;
  if (kWhole) {
    if (column < cols) store<8>(pieces, totals);
  } else {
    for (int i = 0; i < 8; ++i) {
      if (column + i < cols) pieces[i] = totals[i];
    }
  }
}

// A trained adapter as kernels see it.
struct Branch {
  float *da, *db;
  std::int64_t da_stride, db_stride;
  int first, ranks;          // rows of the stack
  int row_begin, row_count;  // of the linear
  float scale;
};

std::vector<Branch> trained_branches(std::span<const LoraBranch> lora) {
  std::vector<Branch> list;
  std::int64_t first = 0;
  for (const LoraBranch& branch : lora) {
    if (branch.trained()) {
      list.push_back({.da = branch.da.f32(),
                      .db = branch.db.f32(),
                      .da_stride = branch.da.row_stride,
                      .db_stride = branch.db.row_stride,
                      .first = static_cast<int>(first),
                      .ranks = static_cast<int>(branch.rank()),
                      .row_begin = static_cast<int>(branch.row_begin),
                      .row_count = static_cast<int>(branch.b.rows),
                      .scale = branch.scale});
    }
    first += branch.rank();
  }
  return list;
}

// Tiles of kRanks ranks and kTileColumns columns, whose kThreads threads turn them around in shared memory where one
// side has the ranks next to each other and the other the columns.
constexpr int kTileColumns = 64;
constexpr int kTileSteps = kRanks * kTileColumns / kThreads;

struct TilePlace {
  int rank, column;
  __device__ static TilePlace by_columns(int step) {
    return {static_cast<int>(threadIdx.x) / kTileColumns + step * (kThreads / kTileColumns),
            static_cast<int>(threadIdx.x) % kTileColumns};
  }
  __device__ static TilePlace by_ranks(int step) {
    return {static_cast<int>(threadIdx.x) % kRanks,
            static_cast<int>(threadIdx.x) / kRanks + step * (kThreads / kRanks)};
  }
};

// A block adds a tile of da if blockIdx.y = 0, else of db.
__global__ void __launch_bounds__(kThreads)
    gradients_kernel(const __grid_constant__ Branch branch, const float* __restrict__ da_pieces, int da_count,
                     const float* __restrict__ db_pieces, int db_count, int ranks, int in, int out) {
  __shared__ float tile[kRanks][kTileColumns + 1];
  const bool of_a = blockIdx.y == 0;
  const int first = blockIdx.x * kTileColumns;
  const int rank = blockIdx.z * kRanks;
  const int columns = of_a ? in : branch.row_count;
  if (first >= columns) return;
  const float* pieces = of_a ? da_pieces : db_pieces + branch.row_begin;
  const int stride = of_a ? in : out;
  const int count = of_a ? da_count : db_count;
  // Beside the tile some place inside is read instead: nothing then holds up the loads.
  const float* from[kTileSteps];
#pragma unroll
  for (int step = 0; step < kTileSteps; ++step) {
    const TilePlace at = TilePlace::by_columns(step);
    const std::int64_t row = min(branch.first + rank + at.rank, ranks - 1);
    from[step] = pieces + row * stride + min(first + at.column, columns - 1);
  }
  float sums[kTileSteps] = {};
#pragma unroll 4
  for (int piece = 0; piece < count; ++piece) {
#pragma unroll
    for (int step = 0; step < kTileSteps; ++step) {
      sums[step] += *from[step];
      from[step] += static_cast<std::int64_t>(ranks) * stride;
    }
  }
#pragma unroll
  for (int step = 0; step < kTileSteps; ++step) {
    const TilePlace at = TilePlace::by_columns(step);
    tile[at.rank][at.column] = of_a ? sums[step] : branch.scale * sums[step];
  }
  __syncthreads();
#pragma unroll
  for (int step = 0; step < kTileSteps; ++step) {
    const TilePlace at = of_a ? TilePlace::by_columns(step) : TilePlace::by_ranks(step);
    const int r = rank + at.rank;
    const int c = first + at.column;
    if (r >= branch.ranks || c >= columns) continue;
    (of_a ? branch.da[r * branch.da_stride + c] : branch.db[c * branch.db_stride + r]) += tile[at.rank][at.column];
  }
}

// Rows of each share of a sample, a multiple of kOuterRows: enough blocks for every multiprocessor, and few pieces.
std::int64_t share_of(const ConstView& shape) {
  constexpr std::int64_t kBlocks = 640;
  const std::int64_t strips = ceil_div(shape.cols, kOuterColumns) * std::max<std::int64_t>(shape.batch, 1);
  const std::int64_t shares = std::clamp<std::int64_t>(kBlocks / strips, 1, 16);
  const std::int64_t step = kOuterRows * kOuterWarps;
  return std::max<std::int64_t>(ceil_div(ceil_div(shape.rows, shares), step) * step, step);
}

std::int64_t shares_of(const ConstView& shape) { return ceil_div(shape.rows, share_of(shape)); }

bool is_bf16(std::initializer_list<ConstView> views) {
  return std::all_of(views.begin(), views.end(), [](const ConstView& v) { return v.dtype == DType::BF16; });
}

}  // namespace

void project_down(ConstView x, ConstView w, View u, cudaStream_t stream) {
  require(is_bf16({x, w, u}) && u.batch == x.batch && u.rows == x.rows && w.cols == x.cols && w.rows == u.cols &&
              u.cols % kRanks == 0 && u.row_stride % 2 == 0,
          "project_down: shapes");
  if (u.count() == 0) return;
  const auto launch = [&]<int kRowTiles, int kTiles>() {
    const dim3 blocks(ceil_div(x.rows, kRowTiles * 16), ceil_div(u.cols, kTiles * 8), static_cast<unsigned>(x.batch));
    const auto run = [&](auto kernel) {
      kernel<<<blocks, kDownWarps * kWarp, 0, stream>>>(rows_of<__nv_bfloat16>(x), rows_of<__nv_bfloat16>(w),
                                                        rows_of<__nv_bfloat16>(u), static_cast<int>(x.rows),
                                                        static_cast<int>(x.cols), static_cast<int>(u.cols));
    };
    wide({x, w}) ? run(project_down_kernel<kRowTiles, kTiles, true>)
                 : run(project_down_kernel<kRowTiles, kTiles, false>);
  };
  if (u.cols <= 16) {
    launch.operator()<1, 2>();
  } else if (u.cols <= 32) {
    launch.operator()<2, 4>();
  } else {
    launch.operator()<2, 8>();
  }
  check_launch("project_down");
}

std::int64_t outer_pieces(const ConstView& shape) { return shape.batch * shares_of(shape); }

void sum_outer(ConstView left, ConstView right, View pieces, cudaStream_t stream) {
  require(is_bf16({left, right}) && left.batch == right.batch && left.rows == right.rows && left.cols % kRanks == 0 &&
              left.row_stride % 2 == 0 && pieces.contiguous() && pieces.dtype == DType::F32 &&
              pieces.batch == outer_pieces(right) && pieces.rows == left.cols && pieces.cols == right.cols,
          "sum_outer: shapes");
  require(right.rows * std::max(left.row_stride, right.row_stride) < std::int64_t{1} << 32,
          "sum_outer: the tensor is too large for one CUDA operation");
  if (right.count() == 0) return;
  const dim3 blocks(ceil_div(right.cols, kOuterColumns), static_cast<unsigned>(pieces.batch),
                    static_cast<unsigned>(left.cols / kRanks));
  const auto run = [&](auto kernel) {
    kernel<<<blocks, kOuterWarps * kWarp, 0, stream>>>(
        rows_of<__nv_bfloat16>(left), rows_of<__nv_bfloat16>(right), static_cast<int>(right.rows),
        static_cast<int>(share_of(right)), static_cast<int>(shares_of(right)), static_cast<int>(left.cols),
        static_cast<int>(right.cols), reinterpret_cast<float*>(pieces.data));
  };
  wide({right}) ? run(outer_kernel<true>) : run(outer_kernel<false>);
  check_launch("sum_outer");
}

void add_adapter_gradients(std::span<const LoraBranch> lora, const View& da_pieces, const View& db_pieces,
                           cudaStream_t stream) {
  for (const Branch& branch : trained_branches(lora)) {
    const dim3 blocks(ceil_div(std::max<std::int64_t>(da_pieces.cols, branch.row_count), kTileColumns), 2,
                      ceil_div(branch.ranks, kRanks));
    gradients_kernel<<<blocks, kThreads, 0, stream>>>(
        branch, reinterpret_cast<const float*>(da_pieces.data), static_cast<int>(da_pieces.batch),
        reinterpret_cast<const float*>(db_pieces.data), static_cast<int>(db_pieces.batch),
        static_cast<int>(da_pieces.rows), static_cast<int>(da_pieces.cols), static_cast<int>(db_pieces.cols));
    check_launch("add_adapter_gradients");
  }
}

}  // namespace squareq::cuda
