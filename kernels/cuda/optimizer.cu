#include <cmath>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/reduce.cuh"

namespace squareq::cuda {
namespace {

// Sums in float64 go over pieces of kPieceSteps packs for each thread, then over the pieces of a sample: the order
// depends on the shape alone.
constexpr std::int64_t kPieceSteps = 16;

template <int N>
std::int64_t pieces_of(std::int64_t count) {
  return ceil_div(count, kThreads * kPieceSteps * N);
}

// partial [batch, pieces]: block (i, b) sums piece i of sample b.
template <class P, int N>
__global__ void __launch_bounds__(kThreads)
    squared_error_kernel(Rows<const P> prediction, AnyRows<const std::byte> target, unsigned in_row, unsigned packs,
                         const float* factors, AnyRows<std::byte> dprediction, double* partial) {
  __shared__ double buffer[1][kWarp];
  const unsigned b = blockIdx.y;
  const unsigned first = blockIdx.x * static_cast<unsigned>(kThreads * kPieceSteps);
  double sum = 0.0;
  for (unsigned step = 0; step < kPieceSteps; ++step) {
    const unsigned i = first + step * kThreads + threadIdx.x;
    if (i >= packs) break;
    const unsigned t = i / in_row;
    const unsigned c = i % in_row * N;
    const Pack<P, N> y = load<N>(prediction(b, t) + c);
    float d[N];
    target.load(b, t, c, d);
    for (int j = 0; j < N; ++j) {
      d[j] = y[j] - d[j];
      sum += static_cast<double>(d[j] * d[j]);
    }
    if (!dprediction) continue;
    for (int j = 0; j < N; ++j) d[j] *= factors[b];
    dprediction.store(b, t, c, d);
  }
  sum = block_sum(sum, buffer);
  if (threadIdx.x == 0) partial[b * gridDim.x + blockIdx.x] = sum;
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    sum_of_squares_kernel(const T* __restrict__ x, std::int64_t packs, double* __restrict__ partial) {
  __shared__ double buffer[1][kWarp];
  const std::int64_t first = blockIdx.x * (kThreads * kPieceSteps) + threadIdx.x;
  const std::int64_t last = min(packs, first + kThreads * kPieceSteps);
  double sum = 0.0;
  for (std::int64_t i = first; i < last; i += kThreads) {
    const Pack<T, N> v = load<N>(x + i * N);
    for (int j = 0; j < N; ++j) sum += static_cast<double>(v[j]) * static_cast<double>(v[j]);
  }
  sum = block_sum(sum, buffer);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block sums the pieces of a sample.
__global__ void __launch_bounds__(kThreads)
    totals_kernel(const double* __restrict__ partial, unsigned pieces, double* __restrict__ totals) {
  __shared__ double buffer[1][kWarp];
  double sum = 0.0;
  for (unsigned i = threadIdx.x; i < pieces; i += kThreads) sum += partial[blockIdx.x * pieces + i];
  sum = block_sum(sum, buffer);
  if (threadIdx.x == 0) totals[blockIdx.x] = sum;
}

// The totals on the host; waits for the stream.
std::vector<double> totals_of(cudaStream_t stream, const View& partial, std::int64_t pieces, const View& totals) {
  std::vector<double> result(static_cast<std::size_t>(totals.cols));
  totals_kernel<<<static_cast<unsigned>(totals.cols), kThreads, 0, stream>>>(
      reinterpret_cast<const double*>(partial.data), static_cast<unsigned>(pieces),
      reinterpret_cast<double*>(totals.data));
  check_launch("totals");
  check(cudaMemcpyAsync(result.data(), totals.data, totals.bytes(), cudaMemcpyDeviceToHost, stream),
        "download of totals");
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  return result;
}

struct AdamFactors {
  float beta1, beta2, epsilon, gradient_scale, rate, keep, correction1, correction2;
};

template <class G, int N>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(Packs<N> packs, AdamFactors f, Rows<const G> gradients, Rows<float> parameters, Rows<float> mean,
                 Rows<float> variance) {
  const auto [b, t, c, inside] = packs.mine();
  if (!inside) return;
  const Pack<G, N> gradient = load<N>(gradients(b, t) + c);
  float w[N], m[N], v[N];
  load<N>(parameters(b, t) + c, w);
  load<N>(mean(b, t) + c, m);
  load<N>(variance(b, t) + c, v);
  for (int i = 0; i < N; ++i) {
    const float g = gradient[i] * f.gradient_scale;
    m[i] = f.beta1 * m[i] + (1.0F - f.beta1) * g;
    v[i] = f.beta2 * v[i] + (1.0F - f.beta2) * g * g;
    const float denominator = sqrtf(v[i] / f.correction2) + f.epsilon;
    w[i] = f.keep * w[i] - f.rate * (m[i] / f.correction1) / denominator;
  }
  store<N>(parameters(b, t) + c, w);
  store<N>(mean(b, t) + c, m);
  store<N>(variance(b, t) + c, v);
}

}  // namespace

void CudaOps::squared_error(ConstView prediction, ConstView target, std::span<const float> gradient_weight,
                            std::span<float> loss, View dprediction) {
  const std::int64_t batch = prediction.batch;
  const bool wants_gradient = present(dprediction);
  require(same_shape(prediction, target) && static_cast<std::int64_t>(loss.size()) == batch, "squared_error: shapes");
  require(!wants_gradient || (same_shape(prediction, dprediction) && gradient_weight.size() == loss.size()),
          "squared_error: gradient does not fit");
  const std::int64_t count = prediction.rows * prediction.cols;
  require(count <= (std::int64_t{1} << 31), "squared_error: the tensor is too large for one CUDA operation");
  Scratch scratch(*this);
  const View partial = scratch.take(DType::F64, 1, batch, pieces_of<1>(count));
  const View totals = scratch.take(DType::F64, 1, 1, batch);
  const View factors = scratch.take(DType::F32, 1, 1, batch);
  if (scratch.rehearsing() || batch == 0) return;
  require(count > 0, "squared_error: no rows");
  const ProfileSpan span = timed(KernelFamily::kCopy, traffic({prediction, target, dprediction}));

  if (wants_gradient) {
    std::vector<float> values;
    for (const float weight : gradient_weight) {
      values.push_back(static_cast<float>(2.0 * static_cast<double>(weight) / static_cast<double>(count)));
    }
    // A copy from pageable memory has read it all when the call returns.
    check(cudaMemcpyAsync(factors.data, values.data(), factors.bytes(), cudaMemcpyHostToDevice, stream_),
          "squared_error: upload of weights");
  }
  std::int64_t pieces = 0;
  with_type(prediction.dtype, [&]<class P>() {
    with_width(wide({prediction, target, dprediction}), [&]<int N>() {
      pieces = pieces_of<N>(count);
      squared_error_kernel<P, N>
          <<<dim3(static_cast<unsigned>(pieces), static_cast<unsigned>(batch)), kThreads, 0, stream_>>>(
              rows_of<P>(prediction), any_rows(target), static_cast<unsigned>(prediction.cols / N),
              static_cast<unsigned>(count / N), reinterpret_cast<const float*>(factors.data), any_rows(dprediction),
              reinterpret_cast<double*>(partial.data));
    });
  });
  check_launch("squared_error");
  const std::vector<double> sums = totals_of(stream_, partial, pieces, totals);
  for (std::size_t b = 0; b < loss.size(); ++b) loss[b] = static_cast<float>(sums[b] / static_cast<double>(count));
}

double CudaOps::sum_of_squares(ConstView x) {
  require(x.contiguous(), "sum_of_squares: the view must be contiguous");
  const std::int64_t count = x.count();
  Scratch scratch(*this);
  const View partial = scratch.take(DType::F64, 1, 1, pieces_of<1>(count));
  const View total = scratch.take(DType::F64, 1, 1, 1);
  if (scratch.rehearsing() || count == 0) return 0.0;
  const ProfileSpan span = timed(KernelFamily::kOptimizer, traffic({x}));
  const bool is_wide = reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && count % kWide == 0;
  std::int64_t pieces = 0;
  with_type(x.dtype, [&]<class T>() {
    with_width(is_wide, [&]<int N>() {
      pieces = pieces_of<N>(count);
      sum_of_squares_kernel<T, N><<<static_cast<unsigned>(pieces), kThreads, 0, stream_>>>(
          reinterpret_cast<const T*>(x.data), count / N, reinterpret_cast<double*>(partial.data));
    });
  });
  check_launch("sum_of_squares");
  return totals_of(stream_, partial, pieces, total)[0];
}

void CudaOps::adamw(const AdamW& p) {
  require(same_shape(p.parameters, p.gradients) && same_shape(p.parameters, p.mean) &&
              same_shape(p.parameters, p.variance) && p.step >= 1,
          "adamw: shapes or step");
  if (Scratch(*this).rehearsing() || p.parameters.count() == 0) return;
  const ProfileSpan span =
      timed(KernelFamily::kOptimizer, 2.0 * traffic({p.parameters, p.mean, p.variance}) + traffic({p.gradients}));
  const auto correction = [&](float beta) {
    return static_cast<float>(1.0 - std::pow(static_cast<double>(beta), static_cast<double>(p.step)));
  };
  const AdamFactors factors{.beta1 = p.beta1,
                            .beta2 = p.beta2,
                            .epsilon = p.epsilon,
                            .gradient_scale = p.gradient_scale,
                            .rate = p.learning_rate,
                            .keep = 1.0F - p.learning_rate * p.weight_decay,
                            .correction1 = correction(p.beta1),
                            .correction2 = correction(p.beta2)};
  with_type(p.gradients.dtype, [&]<class G>() {
    with_width(wide({p.parameters, p.gradients, p.mean, p.variance}), [&]<int N>() {
      const Packs<N> packs(p.parameters);
      adamw_kernel<G, N><<<packs.blocks(), kThreads, 0, stream_>>>(packs, factors, rows_of<G>(ConstView(p.gradients)),
                                                                   float_rows(p.parameters), float_rows(p.mean),
                                                                   float_rows(p.variance));
    });
  });
  check_launch("adamw");
}

}  // namespace squareq::cuda
