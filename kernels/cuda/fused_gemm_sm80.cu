// INT8 products with mma.sync, for compute capabilities 8.0 to 8.9 (its PTX runs on later ones). A block computes a
// tile of 128 x kCols: operands come through shared memory by cp.async, several slices of K ahead, as 16-byte chunks
// whose order is permuted so that ldmatrix meets no bank twice. The int32 sums become scaled float32 in their
// registers, and the low-rank term is added there by bfloat16 mma, whose accumulators lie alike.
#include "kernels/cuda/check.h"
#include "kernels/cuda/fused_gemm_epilogue.cuh"
#include "kernels/cuda/reduce.cuh"

namespace squareq::cuda {
namespace {

struct Int8Product {
  int m, n, k;
  const std::int8_t* a;
  std::int64_t a_stride;
  const std::int8_t* b;
  std::int64_t b_stride;
  const float* a_scales;  // or null
  const float* b_scales;
};

struct LowRank {
  int rank;  // a multiple of 8, or 0
  const __nv_bfloat16* u;
  std::int64_t u_stride;
  const __nv_bfloat16* v;
  std::int64_t v_stride;
  bool v_by_rank;  // v stands as [rank, n], not [n, rank]
};

__host__ __device__ constexpr int tiles_of(int size, int tile) { return (size + tile - 1) / tile; }

constexpr int kTileRows = 128;
constexpr int kSlice = 64;  // bytes of K in a stage
constexpr int kChunk = 16;  // bytes that a thread copies at a time
constexpr int kChunks = kSlice / kChunk;
constexpr int kStages = 4;
constexpr int kBlock = 256;
constexpr int kWarpRows = 64;
constexpr int kRowTiles = kWarpRows / 16;
constexpr int kStageRow = 64 + 8;  // floats of a row on its way out; the rest keeps rows in different banks

template <int kCols>
struct Tile {
  static constexpr int kWarpCols = kCols / 4;  // 2 x 4 warps
  static constexpr int kColTiles = kWarpCols / 8;
  static constexpr int kStageBytes = (kTileRows + kCols) * kSlice;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kSharedBytes >= kBlock / kWarp * 16 * kStageRow * 4);
};

__device__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// Copies 16 bytes, or zeros.
__device__ void copy_chunk(std::uint32_t to, const std::int8_t* from, bool inside) {
  const int bytes = inside ? kChunk : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}
__device__ void commit_copies() { asm volatile("cp.async.commit_group;" ::); }
template <int kPending>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending));
}

__device__ void load_matrices(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

__device__ void multiply(std::int32_t (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Byte offset of a chunk of a row of a slice in shared memory: two rows share 128 bytes, and eight rows in a row have
// their same chunk in eight different places of them.
__device__ int chunk_at(int row, int chunk) { return row * kSlice + ((chunk ^ (row / 2)) % kChunks) * kChunk; }

// Rows [first, first + kRows) of an operand, from global into shared memory slice by slice.
template <int kRows>
class Feed {
 public:
  __device__ Feed(const std::int8_t* data, std::int64_t stride, int first, int rows, int k) : k_(k) {
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
    column_ = chunk * kChunk;
    const int row = static_cast<int>(threadIdx.x) / kChunks;
    offset_ = chunk_at(row, chunk);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int r = first + row + i * kStep;
      inside_ |= (r < rows ? 1U : 0U) << i;
    }
    from_ = data + std::int64_t{min(first + row, rows - 1)} * stride + column_;
    step_ = kStep * stride;
  }
  __device__ void copy_slice(std::uint32_t to) {
    const bool in_k = column_ < k_;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const bool inside = in_k && (inside_ >> i & 1U) != 0;
      copy_chunk(to + offset_ + i * kStep * kSlice, inside ? from_ + i * step_ : from_, inside);
    }
    column_ += kSlice;
    from_ += in_k ? kSlice : 0;
  }

 private:
  static constexpr int kStep = kBlock / kChunks;
  static constexpr int kCopies = kRows / kStep;
  static_assert(kStep % 8 == 0);  // so that all copies of a thread are permuted alike

  const std::int8_t* from_;
  std::int64_t step_;
  unsigned inside_ = 0;
  int column_, offset_, k_;
};

template <int kCols>
using Sums = std::int32_t[kRowTiles][Tile<kCols>::kColTiles][4];

// Adds the products of one slice.
template <int kCols>
__device__ void multiply_slice(Sums<kCols>& sums, std::uint32_t a, std::uint32_t b) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int k = 0; k < kSlice / 32; ++k) {
    std::uint32_t left[kRowTiles][4];
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) load_matrices(left[i], a + chunk_at(i * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
    for (int j = 0; j < Tile<kCols>::kColTiles; j += 2) {
      std::uint32_t right[4];
      load_matrices(right, b + chunk_at(j * 8 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        multiply(sums[i][j], left[i], right[0], right[1]);
        multiply(sums[i][j + 1], left[i], right[2], right[3]);
      }
    }
  }
}

// Values r and r + 1 of a row of u or v, as mma wants them; zeros outside.
__device__ std::uint32_t pair_of(const __nv_bfloat16* data, std::int64_t stride, int row, int rows, int r, int rank) {
  return row < rows && r < rank ? *reinterpret_cast<const std::uint32_t*>(data + row * stride + r) : 0U;
}
// The same of a transposed matrix.
__device__ std::uint32_t pair_across(const __nv_bfloat16* data, std::int64_t stride, int row, int rows, int r,
                                     int rank) {
  if (row >= rows || r >= rank) return 0U;
  const auto* at = reinterpret_cast<const std::uint16_t*>(data) + r * stride + row;
  return at[0] | static_cast<std::uint32_t>(at[stride]) << 16;
}

template <int kCols>
__device__ void add_low_rank(float (&values)[kRowTiles][Tile<kCols>::kColTiles][4], const LowRank& term, int row,
                             int rows, int col, int cols) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  row += lane / 4;
  col += lane / 4;
  for (int r = lane % 4 * 2; r < term.rank; r += 16) {
    std::uint32_t left[kRowTiles][4];
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        left[i][part] = pair_of(term.u, term.u_stride, row + i * 16 + part % 2 * 8, rows, r + part / 2 * 8, term.rank);
      }
    }
#pragma unroll
    for (int j = 0; j < Tile<kCols>::kColTiles; ++j) {
      std::uint32_t right[2];
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        right[part] = term.v_by_rank ? pair_across(term.v, term.v_stride, col + j * 8, cols, r + part * 8, term.rank)
                                     : pair_of(term.v, term.v_stride, col + j * 8, cols, r + part * 8, term.rank);
      }
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) multiply(values[i][j], left[i], right[0], right[1]);
    }
  }
}

__device__ float scale_of(const float* scales, int i, int n) { return scales != nullptr && i < n ? scales[i] : 1.0F; }

template <int kCols>
__device__ void scale_sums(const Sums<kCols>& sums, float (&values)[kRowTiles][Tile<kCols>::kColTiles][4],
                           const Int8Product& p, int row, int col) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float rows[kRowTiles][2];
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) rows[i][h] = scale_of(p.a_scales, row + i * 16 + h * 8 + lane / 4, p.m);
  }
#pragma unroll
  for (int j = 0; j < Tile<kCols>::kColTiles; ++j) {
    const int c = col + j * 8 + lane % 4 * 2;
    const float cols[2] = {scale_of(p.b_scales, c, p.n), scale_of(p.b_scales, c + 1, p.n)};
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        values[i][j][e] = static_cast<float>(sums[i][j][e]) * rows[i][e / 2] * cols[e % 2];
      }
    }
  }
}

// The warp's values through shared memory, so that memory is accessed along rows.
template <int kCols>
__device__ void write_out(const float (&values)[kRowTiles][Tile<kCols>::kColTiles][4], const Epilogue& epilogue,
                          float* stage, int row, int rows, int col, int cols) {
  constexpr int kPacks = Tile<kCols>::kWarpCols / kWide;  // of a row
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < Tile<kCols>::kColTiles; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        *reinterpret_cast<float2*>(stage + (h * 8 + lane / 4) * kStageRow + j * 8 + lane % 4 * 2) =
            make_float2(values[i][j][h * 2], values[i][j][h * 2 + 1]);
      }
    }
    __syncwarp();
    for (int pack = lane; pack < 16 * kPacks; pack += kWarp) {
      const int r = row + i * 16 + pack / kPacks;
      const int c = pack % kPacks * kWide;
      if (r < rows && col + c < cols) epilogue.write(r, col + c, cols, stage + pack / kPacks * kStageRow + c);
    }
  }
}

// Tiles are taken in bands of kBand rows of tiles, so that those that run together share operands in the cache.
constexpr int kBand = 16;

__device__ int2 tile_of(int index, int row_tiles, int col_tiles) {
  const int band = index / (kBand * col_tiles);
  const int height = min(kBand, row_tiles - band * kBand);
  const int in_band = index - band * kBand * col_tiles;
  return make_int2(band * kBand + in_band % height, in_band / height);
}

template <int kCols>
__global__ void __launch_bounds__(kBlock, 1) int8_product_kernel(Int8Product p, LowRank term, Epilogue epilogue) {
  extern __shared__ __align__(128) std::int8_t shared[];
  using T = Tile<kCols>;
  const int2 tile = tile_of(static_cast<int>(blockIdx.x), tiles_of(p.m, kTileRows), tiles_of(p.n, kCols));
  Feed<kTileRows> a(p.a, p.a_stride, tile.x * kTileRows, p.m, p.k);
  Feed<kCols> b(p.b, p.b_stride, tile.y * kCols, p.n, p.k);
  const std::uint32_t base = shared_address(shared);
  const int slices = tiles_of(p.k, kSlice);
  const auto feed = [&](int slice) {
    if (slice < slices) {
      const std::uint32_t to = base + slice % kStages * T::kStageBytes;
      a.copy_slice(to);
      b.copy_slice(to + kTileRows * kSlice);
    }
    commit_copies();
  };
  for (int slice = 0; slice < kStages - 1; ++slice) feed(slice);

  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warp_row = warp % 2 * kWarpRows;
  const int warp_col = warp / 2 * T::kWarpCols;
  Sums<kCols> sums = {};
  for (int slice = 0; slice < slices; ++slice) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    feed(slice + kStages - 1);
    const std::uint32_t from = base + slice % kStages * T::kStageBytes;
    multiply_slice<kCols>(sums, from + warp_row * kSlice, from + (kTileRows + warp_col) * kSlice);
  }
  wait_for_copies<0>();
  __syncthreads();

  const int row = tile.x * kTileRows + warp_row;
  const int col = tile.y * kCols + warp_col;
  float values[kRowTiles][T::kColTiles][4];
  scale_sums<kCols>(sums, values, p, row, col);
  add_low_rank<kCols>(values, term, row, p.m, col, p.n);
  write_out<kCols>(values, epilogue, reinterpret_cast<float*>(shared) + warp * 16 * kStageRow, row, p.m, col, p.n);
}

template <int kCols>
void launch(const Int8Product& p, const LowRank& term, const Epilogue& epilogue, cudaStream_t stream) {
  constexpr int kBytes = Tile<kCols>::kSharedBytes;
  static const cudaError_t set =
      cudaFuncSetAttribute(int8_product_kernel<kCols>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  check(set, "cudaFuncSetAttribute");
  const int tiles = tiles_of(p.m, kTileRows) * tiles_of(p.n, kCols);
  int8_product_kernel<kCols><<<tiles, kBlock, kBytes, stream>>>(p, term, epilogue);
}

bool rows_aligned(const ConstView& v) {
  constexpr std::int64_t kAlignment = 16;
  return reinterpret_cast<std::uintptr_t>(v.data) % kAlignment == 0 &&
         v.row_stride * static_cast<std::int64_t>(size_of(v.dtype)) % kAlignment == 0;
}

}  // namespace

bool fused_gemm_sm80_supports(const FusedGemm& g) {
  return g.a.dtype == DType::I8 && g.b.dtype == DType::I8 && g.transpose_b == Transpose::kYes &&
         g.a.cols % kChunk == 0 && rows_aligned(g.a) && rows_aligned(g.b) &&
         (!g.u || (g.u.cols % 8 == 0 && rows_aligned(g.u) && rows_aligned(g.v)));
}

void fused_gemm_sm80(const FusedGemm& g, cudaStream_t stream) {
  require(fused_gemm_sm80_supports(g), "fused_gemm: operands that this kernel does not take");
  const auto floats = [](const ConstView& v) { return reinterpret_cast<const float*>(v.data); };
  const auto bytes = [](const ConstView& v) { return reinterpret_cast<const std::int8_t*>(v.data); };
  const auto halves = [](const ConstView& v) { return reinterpret_cast<const __nv_bfloat16*>(v.data); };
  const Int8Product product{.m = static_cast<int>(g.a.rows),
                            .n = static_cast<int>(g.b.rows),
                            .k = static_cast<int>(g.a.cols),
                            .a = bytes(g.a),
                            .a_stride = g.a.row_stride,
                            .b = bytes(g.b),
                            .b_stride = g.b.row_stride,
                            .a_scales = floats(g.a_scale),
                            .b_scales = floats(g.b_scale)};
  const LowRank term{.rank = static_cast<int>(g.u.cols),
                     .u = halves(g.u),
                     .u_stride = g.u.row_stride,
                     .v = halves(g.v),
                     .v_stride = g.v.row_stride,
                     .v_by_rank = g.transpose_v == Transpose::kNo};
  if (product.m == 0 || product.n == 0) return;
  // Narrow tiles where wide ones would leave multiprocessors without work; the sums are exact, so both give the same.
  constexpr int kEnough = 96;
  if (tiles_of(product.m, kTileRows) * tiles_of(product.n, 256) >= kEnough) {
    launch<256>(product, term, Epilogue(g), stream);
  } else {
    launch<128>(product, term, Epilogue(g), stream);
  }
  check_launch("fused_gemm_sm80");
}

}  // namespace squareq::cuda
