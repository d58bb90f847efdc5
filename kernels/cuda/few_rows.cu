#include "kernels/cuda/few_rows.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/pack.cuh"

namespace squareq::cuda {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kWarps = 8;  // of a block

__device__ float to_float(std::int8_t v) { return static_cast<float>(v); }
using cuda::to_float;

template <class T>
__device__ float element(const void* p, DType dtype, std::int64_t i) {
  if (dtype == DType::BF16) return __bfloat162float(static_cast<const __nv_bfloat16*>(p)[i]);
  if (dtype == DType::F16) return __half2float(static_cast<const __half*>(p)[i]);
  return static_cast<const T*>(p)[i];
}

// How a linear layer is stored, for kernels over elements of type W.
template <class W>
struct Stored {
  const W* values;
  std::int64_t stride;
  const float* scales;  // of the output rows, or null
  const void* bias;     // or null
  DType bias_dtype;
};

// The rows of a view, one after the other.
struct Flat {
  Rows<float> rows;
  std::int64_t per_sample;
  __device__ float* operator()(std::int64_t r) const { return rows(r / per_sample, r % per_sample); }
};

constexpr std::int64_t kRun = 4;  // neighbouring input features of a lane

template <class W>
struct alignas(kRun * sizeof(W)) Run {
  W values[kRun];
};

// One warp for each output feature. R: rows held in registers, at least `count`. whole_runs: every row starts and ends
// at a multiple of kRun elements.
template <int R, class W>
__global__ void few_rows_kernel(Flat x, Stored<W> w, std::int64_t in, std::int64_t out, int count, float alpha,
                                bool accumulate, bool whole_runs, Flat y) {
  const std::int64_t o = std::int64_t{blockIdx.x} * kWarps + threadIdx.y;
  if (o >= out) return;
  float sums[R] = {};
  const W* row = w.values + o * w.stride;
  for (std::int64_t i = threadIdx.x * kRun; i < in; i += kWarp * kRun) {
    Run<W> run{};
    if (whole_runs) {
      run = *reinterpret_cast<const Run<W>*>(row + i);
    } else {
      for (int j = 0; j < kRun && i + j < in; ++j) run.values[j] = row[i + j];
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (r >= count) break;
      const float* values = x(r) + i;
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        if (i + j < in) sums[r] += to_float(run.values[j]) * values[j];
      }
    }
  }
  const float scale = alpha * (w.scales != nullptr ? w.scales[o] : 1.0F);
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (r >= count) break;
    float sum = sums[r];
    for (unsigned offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0U, sum, offset);
    if (threadIdx.x != 0) continue;
    float result = sum * scale;
    if (w.bias != nullptr) result += element<float>(w.bias, w.bias_dtype, o);
    if (accumulate) result += y(r)[o];
    y(r)[o] = result;
  }
}

// A block sums kWarp input features over all outputs, its threads' y sharing out the outputs.
template <class W>
__global__ void few_rows_backward_kernel(Flat dy, Stored<W> w, std::int64_t in, std::int64_t out, float alpha,
                                         bool accumulate, Flat dx) {
  __shared__ float partial[kWarp][kWarp + 1];
  const std::int64_t r = blockIdx.y;
  const std::int64_t i = std::int64_t{blockIdx.x} * kWarp + threadIdx.x;
  float sum = 0.0F;
  for (std::int64_t o = threadIdx.y; i < in && o < out; o += kWarp) {
    const float d = dy(r)[o] * (w.scales != nullptr ? w.scales[o] : 1.0F);
    sum += d * to_float(w.values[o * w.stride + i]);
  }
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= in) return;
  for (unsigned k = 1; k < kWarp; ++k) sum += partial[k][threadIdx.x];
  dx(r)[i] = alpha * sum + (accumulate ? dx(r)[i] : 0.0F);
}

__global__ void few_rows_outer_kernel(Flat left, Flat right, int count, std::int64_t n, float alpha, float* out,
                                      std::int64_t stride) {
  const std::int64_t m = blockIdx.y;
  const std::int64_t c = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= n) return;
  float sum = 0.0F;
  for (int r = 0; r < count; ++r) sum += left(r)[m] * right(r)[c];
  out[m * stride + c] += alpha * sum;
}

Flat flat(ConstView v) {
  require(v.dtype == DType::F32, "few_rows: rows are float32");
  return {{reinterpret_cast<float*>(const_cast<std::byte*>(v.data)), v.batch_stride, v.row_stride}, v.rows};
}

template <class Function>
void with_stored(const Weight& weight, Function f) {
  const auto stored = [&]<class W>(W*) {
    return Stored<W>{reinterpret_cast<const W*>(weight.values.data), weight.values.row_stride,
                     weight.codec == Codec::kInt8Rows ? reinterpret_cast<const float*>(weight.scales.data) : nullptr,
                     weight.bias.data, weight.bias.dtype};
  };
  switch (weight.values.dtype) {
    case DType::I8: return f(stored(static_cast<std::int8_t*>(nullptr)));
    case DType::BF16: return f(stored(static_cast<__nv_bfloat16*>(nullptr)));
    case DType::F16: return f(stored(static_cast<__half*>(nullptr)));
    case DType::F32: return f(stored(static_cast<float*>(nullptr)));
    default: throw std::logic_error("few_rows: type of the weight");
  }
}

}  // namespace

void few_rows(ConstView x, const Weight& weight, float alpha, Accumulate accumulate, View y, cudaStream_t stream) {
  const std::int64_t rows = x.batch * x.rows;
  require(rows <= kFewRows && x.cols == weight.in() && y.cols == weight.out(), "few_rows: shapes");
  if (rows == 0) return;
  const dim3 threads(kWarp, kWarps);
  const unsigned blocks = ceil_div(weight.out(), kWarps);
  with_stored(weight, [&](auto w) {
    using W = std::remove_cvref_t<decltype(*w.values)>;
    const bool whole_runs = weight.in() % kRun == 0 && w.stride % kRun == 0 &&
                            reinterpret_cast<std::uintptr_t>(w.values) % sizeof(Run<W>) == 0;
    const auto launch = [&](auto kernel) {
      kernel<<<blocks, threads, 0, stream>>>(flat(x), w, weight.in(), weight.out(), static_cast<int>(rows), alpha,
                                             accumulate == Accumulate::kYes, whole_runs, flat(y));
    };
    if (rows == 1) return launch(few_rows_kernel<1, W>);
    if (rows <= 4) return launch(few_rows_kernel<4, W>);
    launch(few_rows_kernel<kFewRows, W>);
  });
  check_launch("few_rows");
}

void few_rows_backward(ConstView dy, const Weight& weight, float alpha, Accumulate accumulate, View dx,
                       cudaStream_t stream) {
  const std::int64_t rows = dy.batch * dy.rows;
  require(dy.cols == weight.out() && dx.cols == weight.in(), "few_rows_backward: shapes");
  if (rows == 0) return;
  const dim3 blocks(ceil_div(weight.in(), kWarp), static_cast<unsigned>(rows));
  with_stored(weight, [&](auto w) {
    few_rows_backward_kernel<<<blocks, dim3(kWarp, kWarp), 0, stream>>>(flat(dy), w, weight.in(), weight.out(), alpha,
                                                                        accumulate == Accumulate::kYes, flat(dx));
  });
  check_launch("few_rows_backward");
}

void few_rows_outer(ConstView left, ConstView right, float alpha, View out, cudaStream_t stream) {
  require(out.rows == left.cols && out.cols == right.cols, "few_rows_outer: shapes");
  constexpr unsigned kThreads = 256;
  const dim3 blocks(ceil_div(out.cols, kThreads), static_cast<unsigned>(out.rows));
  few_rows_outer_kernel<<<blocks, kThreads, 0, stream>>>(flat(left), flat(right),
                                                         static_cast<int>(left.batch * left.rows), out.cols, alpha,
                                                         reinterpret_cast<float*>(out.data), out.row_stride);
  check_launch("few_rows_outer");
}

}  // namespace squareq::cuda
