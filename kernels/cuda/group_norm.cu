// Group normalisation of images [B, pixels, C] in three kernels: mean and sum of squared deviations of every channel in
// chunks of pixels; those of all channels and chunks of a group put together; the values. All sums have a fixed order.
#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/reduce.cuh"

namespace squareq::cuda {
namespace {

constexpr int kChunk = 256;  // pixels of a block of at most kThreads threads; x: packs of channels, y: pixels

struct Shape {
  int pixels, channels, groups;
};

// Sums of a chunk are of x - x[first pixel of the chunk]: a mean far from zero does not cancel the variance.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) chunk_moments(Rows<const T> x, Shape s, Rows<float2> moments) {
  __shared__ float2 sums[kThreads * N];
  const int channel = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * N;
  const int begin = static_cast<int>(blockIdx.y) * kChunk;
  const int end = channel < s.channels ? min(begin + kChunk, s.pixels) : begin;
  float first[N] = {}, sum[N] = {}, squares[N] = {};
  if (begin < end) load<N>(x(blockIdx.z, begin) + channel, first);
#pragma unroll 4  // loads in flight
  for (int pixel = begin + static_cast<int>(threadIdx.y); pixel < end; pixel += static_cast<int>(blockDim.y)) {
    float values[N];
    load<N>(x(blockIdx.z, pixel) + channel, values);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float d = values[i] - first[i];
      sum[i] += d;
      squares[i] += d * d;
    }
  }
  const int across = static_cast<int>(blockDim.x);
  const int column = static_cast<int>(threadIdx.x), row = static_cast<int>(threadIdx.y);
#pragma unroll
  for (int i = 0; i < N; ++i) sums[(row * N + i) * across + column] = {sum[i], squares[i]};
  __syncthreads();
  const auto n = static_cast<float>(min(begin + kChunk, s.pixels) - begin);
  for (int at = row * across + column; at < N * across; at += across * static_cast<int>(blockDim.y)) {
    const int c = (static_cast<int>(blockIdx.x) * across + at % across) * N + at / across;
    if (c >= s.channels) continue;
    float2 total = {};
    for (int r = 0; r < static_cast<int>(blockDim.y); ++r) {
      total.x += sums[r * N * across + at].x;
      total.y += sums[r * N * across + at].y;
    }
    moments(blockIdx.z, blockIdx.y)[c] = {to_float(x(blockIdx.z, begin)[c]) + total.x / n,
                                          fmaxf(total.y - total.x * total.x / n, 0.0F)};
  }
}

// One block a group: mean and 1 / sqrt(variance + epsilon). `share`: of one value in the group. Divisions and roots of
// doubles would be calls, which spill registers.
__global__ void __launch_bounds__(kThreads) group_moments(Rows<const float2> moments, Shape s, int chunks, double share,
                                                          float epsilon, Rows<float2> statistics) {
  __shared__ double buffers[2][1][kWarp];
  const int channels = s.channels / s.groups;
  const int first = static_cast<int>(blockIdx.x) * channels;
  const auto sum = [&](double(&buffer)[1][kWarp], auto term) {
    double total = 0.0;
    for (int i = static_cast<int>(threadIdx.x); i < chunks * channels; i += kThreads) {
      const int chunk = i / channels;
      const int n = min(kChunk, s.pixels - chunk * kChunk);
      total += term(moments(blockIdx.y, chunk)[first + i % channels], n);
    }
    return block_sum(total, buffer);
  };
  const double mean = sum(buffers[0], [](float2 m, int n) { return static_cast<double>(m.x) * n; }) * share;
  const double squares = sum(buffers[1], [mean](float2 m, int n) {
    const double d = static_cast<double>(m.x) - mean;
    return static_cast<double>(m.y) + d * d * n;
  });
  if (threadIdx.x > 0) return;
  const float inverse = 1.0F / sqrtf(static_cast<float>(squares * share) + epsilon);
  statistics(blockIdx.y, 0)[blockIdx.x] = {static_cast<float>(mean), inverse};
}

template <class Tx, class Ty, int N>
__global__ void __launch_bounds__(kThreads)
    normalise(Rows<const Tx> x, Shape s, Rows<const float2> statistics, AnyRows<const std::byte> gain,
              AnyRows<const std::byte> bias, bool silu, Rows<Ty> y) {
  const int channel = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (channel >= s.channels) return;
  const int begin = static_cast<int>(blockIdx.y) * kChunk;
  const int end = min(begin + kChunk, s.pixels);
  float mean[N], factor[N], shift[N];
  gain.load(0, 0, channel, factor);
  bias.load(0, 0, channel, shift);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float2 m = statistics(blockIdx.z, 0)[(channel + i) / (s.channels / s.groups)];
    mean[i] = m.x;
    factor[i] *= m.y;
  }
#pragma unroll 4  // loads in flight
  for (int pixel = begin + static_cast<int>(threadIdx.y); pixel < end; pixel += static_cast<int>(blockDim.y)) {
    float values[N];
    load<N>(x(blockIdx.z, pixel) + channel, values);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float v = (values[i] - mean[i]) * factor[i] + shift[i];
      values[i] = silu ? v / (1.0F + __expf(-v)) : v;
    }
    store<N>(y(blockIdx.z, pixel) + channel, values);
  }
}

template <class Tx, class Ty, int N>
void launch(const GroupNorm& p, View moments, View statistics, cudaStream_t stream) {
  const Shape s{static_cast<int>(p.x.rows), static_cast<int>(p.x.cols), static_cast<int>(p.groups)};
  const int runs = s.channels / N;
  const int across = std::min(runs, kThreads);
  const dim3 block(static_cast<unsigned>(across), static_cast<unsigned>(kThreads / across));
  const double share = static_cast<double>(s.groups) / static_cast<double>(p.x.rows * p.x.cols);
  const auto batch = static_cast<unsigned>(p.x.batch);
  const dim3 grid(ceil_div(runs, across), static_cast<unsigned>(moments.rows), batch);
  // Pairs of floats.
  const Rows<float2> m{reinterpret_cast<float2*>(moments.data), moments.batch_stride / 2, moments.row_stride / 2};
  const Rows<float2> g{reinterpret_cast<float2*>(statistics.data), statistics.batch_stride / 2, 0};
  const Rows<const float2> m_read{m.data, m.batch_stride, m.row_stride}, g_read{g.data, g.batch_stride, 0};
  chunk_moments<Tx, N><<<grid, block, 0, stream>>>(rows_of<Tx>(p.x), s, m);
  check_launch("chunk_moments");
  group_moments<<<dim3(static_cast<unsigned>(s.groups), batch), kThreads, 0, stream>>>(
      m_read, s, static_cast<int>(moments.rows), share, p.epsilon, g);
  check_launch("group_moments");
  normalise<Tx, Ty, N><<<grid, block, 0, stream>>>(rows_of<Tx>(p.x), s, g_read, any_rows(p.gain), any_rows(p.bias),
                                                   p.silu, rows_of<Ty>(p.y));
  check_launch("normalise");
}

}  // namespace

void CudaOps::group_norm(const GroupNorm& p) {
  require(same_shape(p.x, p.y) && p.groups > 0 && p.x.cols % p.groups == 0 && p.gain.count() == p.x.cols &&
              p.bias.count() == p.x.cols,
          "group_norm: shapes");
  require(p.x.rows <= std::int64_t{65535} * kChunk, "group_norm: image is too large");
  Scratch scratch(*this);
  const View moments = scratch.take(DType::F32, p.x.batch, ceil_div(p.x.rows, kChunk), 2 * p.x.cols);
  const View statistics = scratch.take(DType::F32, p.x.batch, 1, 2 * p.groups);
  if (scratch.rehearsing()) return;
  with_types(p.x.dtype, p.y.dtype, wide({p.x, p.y, p.gain, p.bias}),
             [&]<class Tx, class Ty, int N>() { launch<Tx, Ty, N>(p, moments, statistics, stream_); });
}

}  // namespace squareq::cuda
