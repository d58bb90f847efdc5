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

struct LossForm {
  LossKind kind;
  float c;

  __device__ float value(float d) const {
    // Not 2 c (root - c): small differences would cancel.
    return kind == LossKind::kSquared ? d * d : 2.0F * c * d * d / (sqrtf(d * d + c * c) + c);
  }
  __device__ float slope(float d) const {
    return kind == LossKind::kSquared ? 2.0F * d : 2.0F * c * d / sqrtf(d * d + c * c);
  }
};

// partial [batch, pieces]: block (i, b) sums piece i of sample b. A weight of no data is 1.
template <class P, int N>
__global__ void __launch_bounds__(kThreads)
    flow_loss_kernel(LossForm form, Rows<const P> prediction, AnyRows<const std::byte> target, Rows<const float> weight,
                     unsigned in_row, unsigned packs, const float* factors, AnyRows<std::byte> dprediction,
                     double* partial) {
  __shared__ double buffer[1][kWarp];
  const unsigned b = blockIdx.y;
  const unsigned first = blockIdx.x * static_cast<unsigned>(kThreads * kPieceSteps);
  double sum = 0.0;
  for (unsigned step = 0; step < kPieceSteps; ++step) {
    const unsigned i = first + step * kThreads + threadIdx.x;
    if (i >= packs) break;
    const unsigned t = i / in_row;
    const unsigned c = i % in_row * N;
    const float w = weight.data == nullptr ? 1.0F : *weight(b, t);
    const Pack<P, N> y = load<N>(prediction(b, t) + c);
    float d[N];
    target.load(b, t, c, d);
    for (int j = 0; j < N; ++j) {
      d[j] = y[j] - d[j];
      sum += static_cast<double>(w) * static_cast<double>(form.value(d[j]));
    }
    if (!dprediction) continue;
    for (int j = 0; j < N; ++j) d[j] = w * factors[b] * form.slope(d[j]);
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

}  // namespace

void CudaOps::flow_loss(const FlowLoss& p) {
  const std::int64_t batch = p.prediction.batch;
  const std::int64_t rows = p.prediction.rows;
  const bool wants_gradient = present(p.dprediction);
  require(same_shape(p.prediction, p.target) && static_cast<std::int64_t>(p.loss.size()) == batch, "flow_loss: shapes");
  require(!present(p.weight) || (p.weight.batch == batch && p.weight.rows == rows && p.weight.cols == 1),
          "flow_loss: weights do not fit");
  require(!wants_gradient || (same_shape(p.prediction, p.dprediction) && p.gradient_weight.size() == p.loss.size()),
          "flow_loss: gradient does not fit");
  const std::int64_t count = rows * p.prediction.cols;
  require(count <= (std::int64_t{1} << 31), "flow_loss: the tensor is too large for one CUDA operation");
  Scratch scratch(*this);
  const View partial = scratch.take(DType::F64, 1, batch, pieces_of<1>(count));
  const View totals = scratch.take(DType::F64, 1, 1, batch);
  const View factors = scratch.take(DType::F32, 1, 1, batch);
  if (scratch.rehearsing() || batch == 0) return;
  const ProfileSpan span = timed(KernelFamily::kCopy, traffic({p.prediction, p.target, p.dprediction}));
  require(count > 0, "flow_loss: no rows");

  if (wants_gradient) {
    std::vector<float> values;
    for (const float weight : p.gradient_weight) {
      values.push_back(static_cast<float>(static_cast<double>(weight) / static_cast<double>(count)));
    }
    // A copy from pageable memory has read it all when the call returns.
    check(cudaMemcpyAsync(factors.data, values.data(), factors.bytes(), cudaMemcpyHostToDevice, stream_),
          "flow_loss: upload of weights");
  }
  std::int64_t pieces = 0;
  with_type(p.prediction.dtype, [&]<class P>() {
    with_width(wide({p.prediction, p.target, p.dprediction}), [&]<int N>() {
      pieces = pieces_of<N>(count);
      flow_loss_kernel<P, N>
          <<<dim3(static_cast<unsigned>(pieces), static_cast<unsigned>(batch)), kThreads, 0, stream_>>>(
              {p.kind, p.huber_c}, rows_of<P>(p.prediction), any_rows(p.target), float_rows(p.weight),
              static_cast<unsigned>(p.prediction.cols / N), static_cast<unsigned>(count / N),
              reinterpret_cast<const float*>(factors.data), any_rows(p.dprediction),
              reinterpret_cast<double*>(partial.data));
    });
  });
  check_launch("flow_loss");
  const std::vector<double> sums = totals_of(stream_, partial, pieces, totals);
  for (std::size_t b = 0; b < p.loss.size(); ++b) p.loss[b] = static_cast<float>(sums[b] / static_cast<double>(count));
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

}  // namespace squareq::cuda
