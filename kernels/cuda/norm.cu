#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/reduce.cuh"

namespace squareq::cuda {
namespace {

// A row stays in registers where it is not longer than a block of kMaxThreads holds, kHeld packs in each thread: blocks
// are then as small as rows allow, and many of them hide each other's barriers. The backward pass holds two rows.
constexpr int kMaxThreads = 512;
constexpr int kForwardHeld = 4;
constexpr int kBackwardHeld = 2;

constexpr std::int64_t held_cols(int held) { return std::int64_t{kMaxThreads} * held * kWide; }

// Packs held with N values in each; with N = 1 none are, and each visit of a row reads memory again.
template <int N, int kHeld>
constexpr int kHeldFor = N == kWide ? kHeld : 0;

// Threads for rows of `cols` columns.
template <int N, int kHeld>
unsigned threads_for(std::int64_t cols) {
  const unsigned warps = ceil_div(cols, (N == kWide ? kHeld : 1) * N * kWarp);
  return kWarp * std::min<unsigned>(warps, kMaxThreads / kWarp);
}

struct Statistics {
  float mean, inverse;
};

template <class T, int N, int kKept>
__device__ float mean_of(const Row<T, N, kKept>& row, int cols, float (&buffer)[1][kWarp]) {
  float sum = 0.0F;
  row.each([&](int i, int c) {
    const Pack<T, N> x = row.at(i, c);
    for (int j = 0; j < N; ++j) sum += x[j];
  });
  return block_sum(sum, buffer) / static_cast<float>(cols);
}

// 1 / sqrt(mean((x - mean)^2) + epsilon)
template <class T, int N, int kKept>
__device__ float inverse_of(const Row<T, N, kKept>& row, int cols, float mean, float epsilon,
                            float (&buffer)[1][kWarp]) {
  float squares = 0.0F;
  row.each([&](int i, int c) {
    const Pack<T, N> x = row.at(i, c);
    for (int j = 0; j < N; ++j) squares += (x[j] - mean) * (x[j] - mean);
  });
  return 1.0F / sqrtf(block_sum(squares, buffer) / static_cast<float>(cols) + epsilon);
}

// What becomes of the normalised values of columns c, c + 1, ... of sample b.
struct Modulation {
  static constexpr bool kCentred = true;
  Rows<const float> scale, shift;

  template <int N>
  __device__ void apply(int b, int c, float (&v)[N]) const {
    const Pack<float, N> factor = load<N>(scale(b, 0) + c);
    const Pack<float, N> term = load<N>(shift(b, 0) + c);
    for (int j = 0; j < N; ++j) v[j] = (1.0F + factor[j]) * v[j] + term[j];
  }
};

struct GainAndBias {
  static constexpr bool kCentred = true;
  AnyRows<const std::byte> gain, bias;

  template <int N>
  __device__ void apply(int, int c, float (&v)[N]) const {
    float factor[N], term[N];
    gain.load(0, 0, c, factor);
    bias.load(0, 0, c, term);
    for (int j = 0; j < N; ++j) v[j] = factor[j] * v[j] + term[j];
  }
};

struct Gain {
  static constexpr bool kCentred = false;
  AnyRows<const std::byte> gain;

  template <int N>
  __device__ void apply(int, int c, float (&v)[N]) const {
    float factor[N];
    gain.load(0, 0, c, factor);
    for (int j = 0; j < N; ++j) v[j] *= factor[j];
  }
};

// A block a row.
template <class X, class Y, int N, class Affine>
__global__ void __launch_bounds__(kMaxThreads)
    norm_kernel(Rows<const X> x, Rows<Y> y, unsigned rows, int cols, float epsilon, Affine affine) {
  __shared__ float buffers[2][1][kWarp];
  const unsigned b = blockIdx.x / rows;
  const unsigned t = blockIdx.x % rows;
  const Row<X, N, kHeldFor<N, kForwardHeld>> row(x(b, t), cols, threadIdx.x, blockDim.x);
  const float mean = Affine::kCentred ? mean_of(row, cols, buffers[0]) : 0.0F;
  const float inverse = inverse_of(row, cols, mean, epsilon, buffers[1]);
  Y* to = y(b, t);
  row.each([&](int i, int c) {
    const Pack<X, N> from = row.at(i, c);
    float v[N];
    for (int j = 0; j < N; ++j) v[j] = (from[j] - mean) * inverse;
    affine.apply(b, c, v);
    store<N>(to + c, v);
  });
}

template <class Affine>
void normalise(cudaStream_t stream, const ConstView& x, const View& y, bool is_wide, float epsilon,
               const Affine& affine) {
  with_types(x.dtype, y.dtype, is_wide && x.cols <= held_cols(kForwardHeld), [&]<class X, class Y, int N>() {
    norm_kernel<X, Y, N><<<static_cast<unsigned>(x.batch * x.rows), threads_for<N, kForwardHeld>(x.cols), 0, stream>>>(
        rows_of<X>(x), rows_of<Y>(y), static_cast<unsigned>(x.rows), static_cast<int>(x.cols), epsilon, affine);
  });
  check_launch("norm");
}

// With e = dy * (1 + scale) and n = (x - mean) * inverse: dx = inverse * (e - mean(e) - n * mean(e n)). A block a row.
template <class X, class D, int N>
__global__ void __launch_bounds__(kMaxThreads)
    modulated_norm_backward_kernel(Rows<const D> dy, Rows<const X> x, Rows<const float> scale, unsigned rows, int cols,
                                   float epsilon, AnyRows<std::byte> dx, bool add, Statistics* statistics) {
  __shared__ float buffers[2][1][kWarp];
  __shared__ float pair_buffer[2][kWarp];
  const unsigned b = blockIdx.x / rows;
  const unsigned t = blockIdx.x % rows;
  const Row<X, N, kHeldFor<N, kBackwardHeld>> row(x(b, t), cols, threadIdx.x, blockDim.x);
  const Row<D, N, kHeldFor<N, kBackwardHeld>> drow(dy(b, t), cols, threadIdx.x, blockDim.x);
  const float* factors = scale(b, 0);
  const float mean = mean_of(row, cols, buffers[0]);
  const float inverse = inverse_of(row, cols, mean, epsilon, buffers[1]);
  if (statistics != nullptr && threadIdx.x == 0) statistics[blockIdx.x] = {mean, inverse};
  if (!dx) return;

  float sums[2] = {};
  row.each([&](int i, int c) {
    const Pack<X, N> from = row.at(i, c);
    const Pack<D, N> d = drow.at(i, c);
    const Pack<float, N> factor = load<N>(factors + c);
    for (int j = 0; j < N; ++j) {
      const float e = d[j] * (1.0F + factor[j]);
      sums[0] += e;
      sums[1] += e * ((from[j] - mean) * inverse);
    }
  });
  block_sums(sums, pair_buffer);
  const float mean_e = sums[0] / static_cast<float>(cols);
  const float mean_en = sums[1] / static_cast<float>(cols);
  row.each([&](int i, int c) {
    const Pack<X, N> from = row.at(i, c);
    const Pack<D, N> d = drow.at(i, c);
    const Pack<float, N> factor = load<N>(factors + c);
    float v[N] = {};
    if (add) dx.load(b, t, c, v);
    for (int j = 0; j < N; ++j) {
      const float e = d[j] * (1.0F + factor[j]);
      v[j] += inverse * (e - mean_e - (from[j] - mean) * inverse * mean_en);
    }
    dx.store(b, t, c, v);
  });
}

// dscale = sum of dy * (x - mean) * inverse, dshift = sum of dy.
template <class X, class D>
struct ModulationTerm {
  static constexpr int kSums = 2;
  Rows<const D> dy;
  Rows<const X> x;
  const Statistics* statistics;  // null: dscale is not wanted
  int rows;

  template <int N>
  __device__ void add(int b, int t, int c, float (&sums)[kSums][N]) const {
    const Pack<D, N> d = load<N>(dy(b, t) + c);
    for (int j = 0; j < N; ++j) sums[1][j] += d[j];
    if (statistics == nullptr) return;
    const Statistics s = statistics[b * rows + t];
    const Pack<X, N> from = load<N>(x(b, t) + c);
    for (int j = 0; j < N; ++j) sums[0][j] += d[j] * ((from[j] - s.mean) * s.inverse);
  }
};

bool per_sample(const ConstView& v, const ConstView& x) {
  return v.batch == x.batch && v.rows == 1 && v.cols == x.cols;
}

}  // namespace

void CudaOps::modulated_norm(const ModulatedNorm& p) {
  require(same_shape(p.x, p.y) && per_sample(p.scale, p.x) && per_sample(p.shift, p.x), "modulated_norm: shapes");
  if (Scratch(*this).rehearsing() || p.x.count() == 0) return;
  const ProfileSpan span = timed(KernelFamily::kElementwise, traffic({p.x, p.y}));
  normalise(stream_, p.x, p.y, wide({p.x, p.y, p.scale, p.shift}), p.epsilon,
            Modulation{float_rows(p.scale), float_rows(p.shift)});
}

void CudaOps::modulated_norm_backward(const ModulatedNormBackward& p) {
  require(same_shape(p.x, p.dy) && per_sample(p.scale, p.x) && (!present(p.dx) || same_shape(p.dx, p.x)) &&
              (!present(p.dscale) || per_sample(p.dscale, p.x)) && (!present(p.dshift) || per_sample(p.dshift, p.x)),
          "modulated_norm_backward: shapes");
  const bool sums = present(p.dscale) || present(p.dshift);
  Scratch scratch(*this);
  View statistics, partial;
  if (present(p.dscale)) statistics = scratch.take(DType::F32, p.x.batch, p.x.rows, 2);
  if (sums) {
    partial = scratch.take(DType::F32, p.x.batch * pieces_of(p.x.rows), ModulationTerm<float, float>::kSums, p.x.cols);
  }
  if (scratch.rehearsing() || p.x.count() == 0) return;
  const double traffic_of_dx = present(p.dx) ? traffic({p.dx}) * (p.accumulate == Accumulate::kYes ? 2.0 : 1.0) : 0.0;
  const ProfileSpan span = timed(KernelFamily::kElementwise, traffic({p.dy, p.x}) + traffic_of_dx);
  const bool is_wide = wide({p.dy, p.x, p.scale, p.dx}) && p.x.cols <= held_cols(kBackwardHeld);
  auto* stored = reinterpret_cast<Statistics*>(statistics.data);
  with_types(p.x.dtype, p.dy.dtype, is_wide, [&]<class X, class D, int N>() {
    const Rows<const D> dy = rows_of<D>(p.dy);
    const Rows<const X> x = rows_of<X>(p.x);
    if (p.dx || p.dscale) {
      const auto blocks = static_cast<unsigned>(p.x.batch * p.x.rows);
      modulated_norm_backward_kernel<X, D, N><<<blocks, threads_for<N, kBackwardHeld>(p.x.cols), 0, stream_>>>(
          dy, x, float_rows(p.scale), static_cast<unsigned>(p.x.rows), static_cast<int>(p.x.cols), p.epsilon,
          any_rows(p.dx), p.accumulate == Accumulate::kYes, stored);
      check_launch("modulated_norm_backward");
    }
    if (sums) {
      const ModulationTerm<X, D> term{dy, x, stored, static_cast<int>(p.x.rows)};
      column_sums<N>(stream_, term, p.x, partial, p.dscale, p.dshift);
    }
  });
}

void CudaOps::layer_norm(ConstView x, ConstView gain, ConstView bias, float epsilon, View y) {
  require(same_shape(x, y) && gain.count() == x.cols && bias.count() == x.cols, "layer_norm: shapes");
  if (Scratch(*this).rehearsing() || x.count() == 0) return;
  normalise(stream_, x, y, wide({x, y, gain, bias}), epsilon, GainAndBias{any_rows(gain), any_rows(bias)});
}

void CudaOps::rms_norm(ConstView x, ConstView gain, float epsilon, View y) {
  require(same_shape(x, y) && gain.count() == x.cols, "rms_norm: shapes");
  if (Scratch(*this).rehearsing() || x.count() == 0) return;
  normalise(stream_, x, y, wide({x, y, gain}), epsilon, Gain{any_rows(gain)});
}

}  // namespace squareq::cuda
