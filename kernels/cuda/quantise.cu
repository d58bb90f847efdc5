#include "kernels/cuda/quantise.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/quantise.cuh"

namespace squareq::cuda {
namespace {

// A row stays in registers where it is not longer than a block of kMaxThreads holds, kHeld packs in each thread (21504
// columns: the widest linear of FLUX.1).
constexpr int kMaxThreads = 448;
constexpr int kHeld = 6;
constexpr std::int64_t kHeldCols = std::int64_t{kMaxThreads} * kHeld * kWide;

struct NoFactors {
  template <int N>
  __device__ void apply(int, float (&)[N]) const {}
};

struct ColumnFactors {
  const float* values;

  template <int N>
  __device__ void apply(int c, float (&v)[N]) const {
    const Pack<float, N> factor = load<N>(values + c);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] *= factor[i];
  }
};

// A block a row.
template <class T, int N, class Factors>
__global__ void __launch_bounds__(kMaxThreads, 2)
    quantise_kernel(Rows<const T> x, unsigned rows, int cols, Factors factors, std::int8_t* values, float* scales) {
  __shared__ std::uint32_t buffer[kWarp];
  let_next_kernel_begin();
  const Row<T, N, (N == kWide ? kHeld : 0)> row(x(blockIdx.x / rows, blockIdx.x % rows), cols, threadIdx.x, blockDim.x);
  const auto at = [&](int i, int c, float(&v)[N]) {
    const Pack<T, N> pack = row.at(i, c);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = pack[j];
    factors.apply(c, v);
  };
  std::uint32_t largest = 0;
  row.each([&](int i, int c) {
    float v[N];
    at(i, c, v);
    largest = max(largest, magnitude_bits(v));
  });
  const RowScale scale(block_max(largest, buffer));
  if (threadIdx.x == 0) scales[blockIdx.x] = scale.scale;
  std::int8_t* to = values + std::int64_t{blockIdx.x} * cols;
  row.each([&](int i, int c) {
    float v[N];
    at(i, c, v);
    store_quantised(to + c, v, scale.inverse);
  });
}

constexpr int kTile = 128;        // rows and columns of a tile
constexpr int kLine = kTile / 4;  // words of a column of the tile
constexpr int kChunk = 16;        // bytes of an access to memory

// Where a column's words [4 * chunk, 4 * chunk + 4) stand: chunks are permuted so that the 8 threads that write, and
// those that read, 16 bytes side by side meet different banks.
__device__ int chunk_at(int col, int chunk) { return col * kLine + ((chunk ^ (col / kChunk)) % 8) * 4; }

// Words a, b, c, d hold four columns of one row each; out[j] gets column j of the four rows.
__device__ void transpose_4x4(const std::uint32_t (&in)[4], std::uint32_t (&out)[4]) {
  const std::uint32_t low01 = __byte_perm(in[0], in[1], 0x5140);   // a0 b0 a1 b1
  const std::uint32_t high01 = __byte_perm(in[0], in[1], 0x7362);  // a2 b2 a3 b3
  const std::uint32_t low23 = __byte_perm(in[2], in[3], 0x5140);
  const std::uint32_t high23 = __byte_perm(in[2], in[3], 0x7362);
  out[0] = __byte_perm(low01, low23, 0x5410);
  out[1] = __byte_perm(low01, low23, 0x7632);
  out[2] = __byte_perm(high01, high23, 0x5410);
  out[3] = __byte_perm(high01, high23, 0x7632);
}

union Chunk {
  uint4 vector;
  std::uint32_t words[4];
};

// Each thread transposes 4 rows of 16 columns in registers, into shared memory; memory is accessed along rows of both
// sides, 128 bytes at a time.
__global__ void __launch_bounds__(256)
    transpose_int8_kernel(const std::int8_t* x, std::int8_t* out, int rows, int cols) {
  __shared__ alignas(16) std::uint32_t tile[kTile * kLine];
  const int row = static_cast<int>(blockIdx.y) * kTile;
  const int col = static_cast<int>(blockIdx.x) * kTile;
  const int quad = static_cast<int>(threadIdx.x) / 32 * 4 + static_cast<int>(threadIdx.x) % 4;
  const int group = static_cast<int>(threadIdx.x) % 32 / 4;
  if (row + quad * 4 < rows && col + group * kChunk < cols) {
    Chunk in[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      in[i].vector =
          *reinterpret_cast<const uint4*>(x + std::int64_t{row + quad * 4 + i} * cols + col + group * kChunk);
    }
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      std::uint32_t columns[4];
      transpose_4x4({in[0].words[w], in[1].words[w], in[2].words[w], in[3].words[w]}, columns);
#pragma unroll
      for (int j = 0; j < 4; ++j) tile[chunk_at(group * kChunk + w * 4 + j, quad / 4) + quad % 4] = columns[j];
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kTile / kChunk; i += 256) {
    const int c = i / 8;
    const int chunk = i % 8;
    if (col + c >= cols || row + chunk * kChunk >= rows) continue;
    *reinterpret_cast<uint4*>(out + std::int64_t{col + c} * rows + row + chunk * kChunk) =
        *reinterpret_cast<const uint4*>(&tile[chunk_at(c, chunk)]);
  }
}

}  // namespace

void quantise_rows(ConstView x, ConstView factors, const QuantisedRows& out, cudaStream_t stream) {
  require(out.values.contiguous() && out.values.dtype == DType::I8 && out.values.rows == x.batch * x.rows &&
              out.values.cols == x.cols && out.scales.count() == x.batch * x.rows &&
              (!factors || factors.count() == x.cols),
          "quantise_rows: shapes");
  if (x.count() == 0) return;
  const auto blocks = static_cast<unsigned>(x.batch * x.rows);
  auto* values = reinterpret_cast<std::int8_t*>(out.values.data);
  auto* scales = reinterpret_cast<float*>(out.scales.data);
  const auto cols = static_cast<int>(x.cols);
  with_type(x.dtype, [&]<class T>() {
    with_width(wide({x, factors, out.values}) && x.cols <= kHeldCols, [&]<int N>() {
      const unsigned warps = ceil_div(x.cols, (N == kWide ? kHeld : 1) * N * kWarp);
      const unsigned threads = kWarp * std::min<unsigned>(warps, kMaxThreads / kWarp);
      const auto launch = [&](auto scaling) {
        quantise_kernel<T, N><<<blocks, threads, 0, stream>>>(rows_of<T>(x), static_cast<unsigned>(x.rows), cols,
                                                              scaling, values, scales);
      };
      if (factors) {
        launch(ColumnFactors{float_rows(factors).data});
      } else {
        launch(NoFactors{});
      }
    });
  });
  check_launch("quantise_rows");
}

void transpose_int8(ConstView x, View out, cudaStream_t stream) {
  require(x.batch == 1 && out.batch == 1 && out.rows == x.cols && out.cols == x.rows && x.contiguous() &&
              out.contiguous() && x.rows % kChunk == 0 && x.cols % kChunk == 0,
          "transpose_int8: shapes");
  transpose_int8_kernel<<<dim3(ceil_div(x.cols, kTile), ceil_div(x.rows, kTile)), 256, 0, stream>>>(
      reinterpret_cast<const std::int8_t*>(x.data), reinterpret_cast<std::int8_t*>(out.data), static_cast<int>(x.rows),
      static_cast<int>(x.cols));
  check_launch("transpose_int8");
}

}  // namespace squareq::cuda
