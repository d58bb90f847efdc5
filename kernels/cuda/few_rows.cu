#include "kernels/cuda/few_rows.h"

#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/reduce.cuh"

namespace squareq::cuda {
namespace {

constexpr int kWarps = 8;  // of a block
// Below the first a block computes one output, from the second on a warp computes four: with fewer blocks, most of the
// device would be idle.
constexpr std::int64_t kFewOutputs = 1024;
constexpr std::int64_t kManyOutputs = 8192;

// How a linear layer is stored, for kernels over elements of type W.
template <class W>
struct Stored {
  const W* values;
  std::int64_t stride;
  const float* scales;            // of the output rows, or null
  AnyRows<const std::byte> bias;  // or empty
};

// The rows of a view, one after the other.
struct Flat {
  Rows<float> rows;
  std::int64_t per_sample;
  __device__ float* operator()(std::int64_t r) const { return rows(r / per_sample, r % per_sample); }
};

// Neighbouring input features of a lane: one 16-byte load.
template <class W>
constexpr int kRunOf = 16 / sizeof(W);

template <class W>
struct alignas(16) Run {
  W values[kRunOf<W>];
};

template <class W>
__device__ void to_floats(const Run<W>& run, float (&to)[kRunOf<W>]) {
#pragma unroll
  for (int i = 0; i < kRunOf<W>; ++i) to[i] = to_float(run.values[i]);
}

// By way of the float 2^23 + 128 + value, whose low byte is value + 128: instructions that convert take four times as
// long as those that pick bytes and subtract.
__device__ void to_floats(const Run<std::int8_t>& run, float (&to)[kRunOf<std::int8_t>]) {
  constexpr unsigned kTwoTo23 = 0x4B000000;  // as a float
  const auto* words = reinterpret_cast<const unsigned*>(run.values);
#pragma unroll
  for (int i = 0; i < kRunOf<std::int8_t>; ++i) {
    const unsigned bits = __byte_perm(words[i / 4] ^ 0x80808080U, kTwoTo23, 0x7440 | i % 4);
    to[i] = __uint_as_float(bits) - (0x1p23F + 128.0F);
  }
}

// One warp for kOutputs output features, or with kShared a block of warps that share out the input features of one. R:
// rows held in registers, at least `count`. whole_runs: every row of both is made of aligned runs; then the floats too
// are loaded in pieces of 16 bytes. Since neighbouring lanes are a run apart, those loads take longer than the weights'
// unless several outputs use what they brought; there may be several with whole runs only.
template <int R, int kOutputs, bool kShared, class W>
__global__ void few_rows_kernel(Flat x, Stored<W> w, int in, int out, int count, float alpha, bool accumulate,
                                bool whole_runs, Flat y) {
  static_assert(!kShared || kOutputs == 1);
  constexpr int kRun = kRunOf<W>;
  __shared__ float shared[kWarps][R];
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int first = kShared ? blockIdx.x : (blockIdx.x * kWarps + warp) * kOutputs;
  if (first >= out) return;
  float sums[R][kOutputs] = {};
#pragma unroll 2
  for (int i = (kShared ? threadIdx.x : lane) * kRun; i < in; i += (kShared ? kWarps : 1) * kWarp * kRun) {
    Run<W> runs[kOutputs] = {};
#pragma unroll
    for (int k = 0; k < kOutputs; ++k) {
      const W* row = w.values + min(first + k, out - 1) * w.stride;
      if (kOutputs > 1 || whole_runs) {
        runs[k] = *reinterpret_cast<const Run<W>*>(row + i);
      } else {
        for (int j = 0; j < kRun && i + j < in; ++j) runs[k].values[j] = row[i + j];
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (r >= count) break;
      alignas(16) float values[kRun];
      if (kOutputs > 1 || whole_runs) {
#pragma unroll
        for (int j = 0; j < kRun; j += 4) {
          *reinterpret_cast<float4*>(values + j) = *reinterpret_cast<const float4*>(x(r) + i + j);
        }
      } else {
        for (int j = 0; j < kRun; ++j) values[j] = i + j < in ? x(r)[i + j] : 0.0F;
      }
#pragma unroll
      for (int k = 0; k < kOutputs; ++k) {
        float weights[kRun];
        to_floats(runs[k], weights);
#pragma unroll
        for (int j = 0; j < kRun; ++j) sums[r][k] += weights[j] * values[j];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int k = 0; k < kOutputs; ++k) sums[r][k] = group_sum(sums[r][k]);
    if (kShared && lane == 0) shared[warp][r] = sums[r][0];
  }
  if constexpr (kShared) __syncthreads();
  if (lane != 0 || (kShared && warp != 0)) return;
#pragma unroll
  for (int k = 0; k < kOutputs; ++k) {
    const int o = first + k;
    if (o >= out) return;
    const float scale = alpha * (w.scales != nullptr ? w.scales[o] : 1.0F);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (r >= count) break;
      float sum = sums[r][k];
      for (int other = 1; kShared && other < kWarps; ++other) sum += shared[other][r];
      float result = sum * scale;
      if (w.bias) result += w.bias.value(0, 0, o);
      if (accumulate) result += y(r)[o];
      y(r)[o] = result;
    }
  }
}

// A block sums kWarp input features over one share of the outputs, its warps' rows sharing those out. `pieces`: the
// sums [shares, rows, in], added later.
constexpr int kBackwardRows = 32;

template <class W>
__global__ void __launch_bounds__(kWarp* kBackwardRows)
    few_rows_backward_kernel(Flat dy, Stored<W> w, int in, int out, int share, float* __restrict__ pieces) {
  __shared__ float partial[kBackwardRows][kWarp + 1];
  const int r = blockIdx.y;
  const int i = blockIdx.x * kWarp + threadIdx.x;
  const int last = min(out, static_cast<int>(blockIdx.z + 1) * share);
  float sum = 0.0F;
#pragma unroll 4
  for (int o = blockIdx.z * share + threadIdx.y; o < last; o += kBackwardRows) {
    const float d = dy(r)[o] * (w.scales != nullptr ? w.scales[o] : 1.0F);
    if (i < in) sum += d * to_float(w.values[o * w.stride + i]);
  }
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= in) return;
  for (int k = 1; k < kBackwardRows; ++k) sum += partial[k][threadIdx.x];
  pieces[(static_cast<std::int64_t>(blockIdx.z) * gridDim.y + r) * in + i] = sum;
}

__global__ void __launch_bounds__(kThreads)
    few_rows_total_kernel(const float* __restrict__ pieces, int shares, int rows, int in, float alpha, bool accumulate,
                          Flat dx) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const int r = blockIdx.y;
  if (i >= in) return;
  float sum = 0.0F;
#pragma unroll 8
  for (int k = 0; k < shares; ++k) sum += pieces[(static_cast<std::int64_t>(k) * rows + r) * in + i];
  dx(r)[i] = alpha * sum + (accumulate ? dx(r)[i] : 0.0F);
}

__global__ void __launch_bounds__(kThreads)
    few_rows_outer_kernel(Flat left, Flat right, int count, std::int64_t m, unsigned n, float alpha, float* out,
                          std::int64_t stride) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  const unsigned row = i / n;
  const unsigned c = i % n;
  if (row >= m) return;
  float sum = 0.0F;
  for (int r = 0; r < count; ++r) sum += left(r)[row] * right(r)[c];
  out[row * stride + c] += alpha * sum;
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
                     any_rows(weight.bias)};
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
  with_stored(weight, [&](auto w) {
    using W = std::remove_cvref_t<decltype(*w.values)>;
    const bool whole_runs = weight.in() % kRunOf<W> == 0 && w.stride % kRunOf<W> == 0 &&
                            reinterpret_cast<std::uintptr_t>(w.values) % sizeof(Run<W>) == 0 &&
                            reinterpret_cast<std::uintptr_t>(x.data) % sizeof(float4) == 0 && x.row_stride % 4 == 0 &&
                            x.batch_stride % 4 == 0;
    const auto launch = [&](auto kernel, std::int64_t outputs) {  // of a block
      const unsigned blocks = ceil_div(weight.out(), outputs);
      kernel<<<blocks, kWarp * kWarps, 0, stream>>>(flat(x), w, static_cast<int>(weight.in()),
                                                    static_cast<int>(weight.out()), static_cast<int>(rows), alpha,
                                                    accumulate == Accumulate::kYes, whole_runs, flat(y));
    };
    const auto with_rows = [&]<int R>() {
      if (weight.out() < kFewOutputs) {
        launch(few_rows_kernel<R, 1, true, W>, 1);
      } else if (weight.out() < kManyOutputs || !whole_runs) {
        launch(few_rows_kernel<R, 1, false, W>, kWarps);
      } else {
        launch(few_rows_kernel<R, 4, false, W>, 4 * kWarps);
      }
    };
    if (rows == 1) return with_rows.template operator()<1>();
    if (rows <= 4) return with_rows.template operator()<4>();
    with_rows.template operator()<kFewRows>();
  });
  check_launch("few_rows");
}

std::int64_t few_rows_shares(std::int64_t rows, const Weight& weight) {
  constexpr std::int64_t kBlocks = 512;
  constexpr std::int64_t kLeast = 8 * kBackwardRows;  // outputs of a share
  const std::int64_t columns = ceil_div(weight.in(), kWarp) * std::max<std::int64_t>(rows, 1);
  return std::clamp<std::int64_t>(kBlocks / columns, 1, ceil_div(weight.out(), kLeast));
}

void few_rows_backward(ConstView dy, const Weight& weight, float alpha, Accumulate accumulate, View dx, View pieces,
                       cudaStream_t stream) {
  const std::int64_t rows = dy.batch * dy.rows;
  require(dy.cols == weight.out() && dx.cols == weight.in(), "few_rows_backward: shapes");
  if (rows == 0) return;
  const std::int64_t shares = few_rows_shares(rows, weight);
  require(pieces.dtype == DType::F32 && pieces.count() >= shares * rows * weight.in(), "few_rows_backward: pieces");
  const auto in = static_cast<int>(weight.in());
  const auto out = static_cast<int>(weight.out());
  auto* sums = reinterpret_cast<float*>(pieces.data);
  with_stored(weight, [&](auto w) {
    const dim3 blocks(ceil_div(in, kWarp), static_cast<unsigned>(rows), static_cast<unsigned>(shares));
    few_rows_backward_kernel<<<blocks, dim3(kWarp, kBackwardRows), 0, stream>>>(
        flat(dy), w, in, out, static_cast<int>(ceil_div(out, shares)), sums);
  });
  check_launch("few_rows_backward");
  few_rows_total_kernel<<<dim3(ceil_div(in, kThreads), static_cast<unsigned>(rows)), kThreads, 0, stream>>>(
      sums, static_cast<int>(shares), static_cast<int>(rows), in, alpha, accumulate == Accumulate::kYes, flat(dx));
  check_launch("few_rows_backward, totals");
}

void few_rows_outer(ConstView left, ConstView right, float alpha, View out, cudaStream_t stream) {
  require(out.rows == left.cols && out.cols == right.cols, "few_rows_outer: shapes");
  if (out.count() == 0) return;
  few_rows_outer_kernel<<<ceil_div(out.count(), kThreads), kThreads, 0, stream>>>(
      flat(left), flat(right), static_cast<int>(left.batch * left.rows), out.rows, static_cast<unsigned>(out.cols),
      alpha, reinterpret_cast<float*>(out.data), out.row_stride);
  check_launch("few_rows_outer");
}

}  // namespace squareq::cuda
