#include <algorithm>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/cuda/activation_math.cuh"
#include "kernels/cuda/check.h"
#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/pack.cuh"

namespace squareq::cuda {
namespace {

// As with_type, for what is only read: also float16.
template <class Function>
void with_source_type(DType dtype, Function f) {
  if (dtype == DType::F16) return f.template operator()<__half>();
  with_type(dtype, f);
}

// Every thread reads all that it needs of its place before it writes there, so outputs may be inputs.

template <class X, class Y, int N>
__global__ void __launch_bounds__(kThreads)
    activation_kernel(Packs<N> packs, Sigmoidal f, Rows<const X> x, AnyRows<const std::byte> times, Rows<Y> y) {
  const auto [b, t, c, inside] = packs.mine();
  if (!inside) return;
  const Pack<X, N> from = load<N>(x(b, t) + c);
  float v[N];
  for (int i = 0; i < N; ++i) v[i] = f.value(from[i]);
  if (times) {
    float factor[N];
    times.load(b, t, c, factor);
    for (int i = 0; i < N; ++i) v[i] *= factor[i];
  }
  store<N>(y(b, t) + c, v);
}

template <class X, class D, int N>
__global__ void __launch_bounds__(kThreads)
    activation_backward_kernel(Packs<N> packs, Sigmoidal f, Rows<const D> dy, Rows<const X> x, AnyRows<std::byte> dx,
                               bool add) {
  const auto [b, t, c, inside] = packs.mine();
  if (!inside) return;
  const Pack<X, N> from = load<N>(x(b, t) + c);
  const Pack<D, N> d = load<N>(dy(b, t) + c);
  float v[N] = {};
  if (add) dx.load(b, t, c, v);
  for (int i = 0; i < N; ++i) v[i] += d[i] * f.derivative(from[i]);
  dx.store(b, t, c, v);
}

template <class D, class Y, int N>
__global__ void __launch_bounds__(kThreads)
    gate_backward_kernel(Packs<N> packs, Rows<const D> dsum, Rows<const float> gate, Rows<Y> dy) {
  const auto [b, t, c, inside] = packs.mine();
  if (!inside) return;
  const Pack<D, N> d = load<N>(dsum(b, t) + c);
  const Pack<float, N> g = load<N>(gate(b, 0) + c);
  float v[N];
  for (int i = 0; i < N; ++i) v[i] = d[i] * g[i];
  store<N>(dy(b, t) + c, v);
}

// The same together with the sums of dgate: dsum is read once for both.
template <class D, class Y>
struct GateTerm {
  static constexpr int kSums = 1;
  Rows<const D> dsum;
  Rows<const float> gate;
  AnyRows<const std::byte> y;
  Rows<Y> dy;

  template <int N>
  __device__ void add(int b, int t, int c, float (&sums)[kSums][N]) const {
    const Pack<D, N> d = load<N>(dsum(b, t) + c);
    const Pack<float, N> g = load<N>(gate(b, 0) + c);
    float factor[N], v[N];
    y.load(b, t, c, factor);
    for (int i = 0; i < N; ++i) {
      sums[0][i] += d[i] * factor[i];
      v[i] = d[i] * g[i];
    }
    store<N>(dy(b, t) + c, v);
  }
};

template <class T, class Y, int N>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(Packs<N> packs, Rows<const T> table, const std::int32_t* ids, unsigned rows, Rows<Y> y) {
  const auto [b, t, c, inside] = packs.mine();
  if (!inside) return;
  float v[N];
  load<N>(table(0, ids[b * rows + t]) + c, v);
  store<N>(y(b, t) + c, v);
}

template <class X, class Y, int N>
__global__ void __launch_bounds__(kThreads) copy_kernel(Packs<N> packs, Rows<const X> x, Rows<Y> y, bool add) {
  const auto [b, t, c, inside] = packs.mine();
  if (!inside) return;
  float v[N];
  load<N>(x(b, t) + c, v);
  if (add) {
    const Pack<Y, N> before = load<N>(y(b, t) + c);
    for (int i = 0; i < N; ++i) v[i] += before[i];
  }
  store<N>(y(b, t) + c, v);
}

template <class Y, int N>
__global__ void __launch_bounds__(kThreads) fill_kernel(Packs<N> packs, Rows<Y> y, float value) {
  const auto [b, t, c, inside] = packs.mine();
  if (!inside) return;
  float v[N];
  for (int i = 0; i < N; ++i) v[i] = value;
  store<N>(y(b, t) + c, v);
}

// Passed with the launch: nothing is left to copy, or to wait for.
constexpr int kSinusoidValues = 64;
struct SinusoidValues {
  float list[kSinusoidValues];
};

template <class Y>
__global__ void __launch_bounds__(kThreads)
    sinusoid_kernel(const __grid_constant__ SinusoidValues values, int half, Rows<Y> y) {
  const int j = blockIdx.x * kThreads + threadIdx.x;
  if (j >= half) return;
  const double frequency = pow(10000.0, -static_cast<double>(j) / static_cast<double>(half));
  const double angle = 1000.0 * static_cast<double>(values.list[blockIdx.y]) * frequency;
  Y* to = y(blockIdx.y, 0);
  to[j] = from_float<Y>(static_cast<float>(cos(angle)));
  to[half + j] = from_float<Y>(static_cast<float>(sin(angle)));
}

// A tile of kTile x kTile goes through shared memory, so that both sides are accessed along their rows.
constexpr int kTile = 32;
constexpr int kTileRows = 8;

template <class X, class Y>
__global__ void __launch_bounds__(kTile* kTileRows) transpose_kernel(Rows<const X> x, Rows<Y> y, int rows, int cols) {
  __shared__ float tile[kTile][kTile + 1];  // the extra column keeps a column of the tile in different banks
  const int tiles = (cols + kTile - 1) / kTile;
  const int row = static_cast<int>(blockIdx.x) / tiles * kTile;
  const int col = static_cast<int>(blockIdx.x) % tiles * kTile;
  const int i = threadIdx.x;
  for (int j = threadIdx.y; j < kTile && row + j < rows; j += kTileRows) {
    if (col + i < cols) tile[j][i] = to_float(x(blockIdx.y, row + j)[col + i]);
  }
  __syncthreads();
  for (int j = threadIdx.y; j < kTile && col + j < cols; j += kTileRows) {
    if (row + i < rows) y(blockIdx.y, col + j)[row + i] = from_float<Y>(tile[i][j]);
  }
}

}  // namespace

void CudaOps::activation(Activation f, ConstView x, ConstView times, View y) {
  require(same_shape(x, y) && (!times || same_shape(x, times)), "activation: shapes");
  if (Scratch(*this).rehearsing() || x.count() == 0) return;
  const ProfileSpan span = timed(KernelFamily::kElementwise, traffic({x, times, y}));
  with_types(x.dtype, y.dtype, wide({x, times, y}), [&]<class X, class Y, int N>() {
    const Packs<N> packs(x);
    activation_kernel<X, Y, N>
        <<<packs.blocks(), kThreads, 0, stream_>>>(packs, sigmoidal(f), rows_of<X>(x), any_rows(times), rows_of<Y>(y));
  });
  check_launch("activation");
}

void CudaOps::activation_backward(Activation f, ConstView dy, ConstView x, View dx, Accumulate accumulate) {
  require(same_shape(x, dx) && same_shape(x, dy), "activation_backward: shapes");
  if (Scratch(*this).rehearsing() || x.count() == 0) return;
  const ProfileSpan span = timed(KernelFamily::kElementwise, traffic({x, dy, dx}));
  with_types(x.dtype, dy.dtype, wide({x, dy, dx}), [&]<class X, class D, int N>() {
    const Packs<N> packs(x);
    activation_backward_kernel<X, D, N><<<packs.blocks(), kThreads, 0, stream_>>>(
        packs, sigmoidal(f), rows_of<D>(dy), rows_of<X>(x), any_rows(dx), accumulate == Accumulate::kYes);
  });
  check_launch("activation_backward");
}

void CudaOps::gate_backward(ConstView dsum, ConstView gate, ConstView y, View dy, View dgate) {
  const auto per_sample = [&](ConstView v) { return v.batch == dsum.batch && v.rows == 1 && v.cols == dsum.cols; };
  const bool sums = present(dgate);
  require(same_shape(dsum, dy) && per_sample(gate), "gate_backward: shapes");
  require(!sums || (per_sample(dgate) && same_shape(y, dsum)), "gate_backward: dgate or y does not fit");
  Scratch scratch(*this);
  View partial;
  if (sums) partial = scratch.take(DType::F32, dsum.batch * pieces_of(dsum.rows), 1, dsum.cols);
  if (scratch.rehearsing() || dsum.count() == 0) return;
  const ProfileSpan span = timed(KernelFamily::kElementwise, traffic({dsum, dy}) + (sums ? traffic({y}) : 0.0));
  const bool is_wide = wide({dsum, gate, dy}) && (!sums || wide({y}));
  with_types(dsum.dtype, dy.dtype, is_wide, [&]<class D, class Y, int N>() {
    const Rows<const float> gates = float_rows(gate);
    if (sums) {
      const GateTerm<D, Y> term{rows_of<D>(dsum), gates, any_rows(y), rows_of<Y>(dy)};
      column_sums<N>(stream_, term, dsum, partial, dgate, {});
    } else {
      const Packs<N> packs(dsum);
      gate_backward_kernel<D, Y, N>
          <<<packs.blocks(), kThreads, 0, stream_>>>(packs, rows_of<D>(dsum), gates, rows_of<Y>(dy));
      check_launch("gate_backward");
    }
  });
}

void CudaOps::gather(ConstView table, std::span<const std::int32_t> ids, View y) {
  require(table.batch == 1 && table.cols == y.cols && static_cast<std::int64_t>(ids.size()) == y.batch * y.rows,
          "gather: shapes");
  Scratch scratch(*this);
  const View uploaded = scratch.take(DType::I32, 1, 1, static_cast<std::int64_t>(ids.size()));
  if (scratch.rehearsing() || y.count() == 0) return;
  for (const std::int32_t id : ids) {
    if (id >= 0 && id < table.rows) continue;
    throw FormatError({.where = "embedding table",
                       .found = "id " + std::to_string(id),
                       .expected = "an id below " + std::to_string(table.rows),
                       .advice = "the tokenizer does not belong to this model"});
  }
  // A copy from pageable memory has read it all when the call returns.
  check(cudaMemcpyAsync(uploaded.data, ids.data(), ids.size_bytes(), cudaMemcpyHostToDevice, stream_),
        "gather: upload of ids");
  const auto* rows = reinterpret_cast<const std::int32_t*>(uploaded.data);
  with_source_type(table.dtype, [&]<class T>() {
    with_type(y.dtype, [&]<class Y>() {
      with_width(wide({table, y}), [&]<int N>() {
        const Packs<N> packs(y);
        gather_kernel<T, Y, N><<<packs.blocks(), kThreads, 0, stream_>>>(packs, rows_of<T>(table), rows,
                                                                         static_cast<unsigned>(y.rows), rows_of<Y>(y));
      });
    });
  });
  check_launch("gather");
}

void CudaOps::sinusoid(std::span<const float> values, View y) {
  require(static_cast<std::int64_t>(values.size()) == y.batch && y.rows == 1 && y.cols % 2 == 0, "sinusoid: shapes");
  if (Scratch(*this).rehearsing()) return;
  const ProfileSpan span = timed(KernelFamily::kCopy, traffic({y}));
  with_type(y.dtype, [&]<class Y>() {
    for (std::int64_t first = 0; first < y.batch; first += kSinusoidValues) {
      const std::int64_t count = std::min<std::int64_t>(kSinusoidValues, y.batch - first);
      SinusoidValues some{};
      std::copy_n(values.begin() + first, count, some.list);
      sinusoid_kernel<<<dim3(ceil_div(y.cols / 2, kThreads), static_cast<unsigned>(count)), kThreads, 0, stream_>>>(
          some, static_cast<int>(y.cols / 2), rows_of<Y>(y.batch_slice(first, count)));
    }
  });
  check_launch("sinusoid");
}

void CudaOps::transpose(ConstView x, View y) {
  require(y.batch == x.batch && y.rows == x.cols && y.cols == x.rows, "transpose: shapes");
  if (Scratch(*this).rehearsing() || x.count() == 0) return;
  const dim3 blocks(ceil_div(x.rows, kTile) * ceil_div(x.cols, kTile), static_cast<unsigned>(x.batch));
  with_types(x.dtype, y.dtype, false, [&]<class X, class Y, int>() {
    transpose_kernel<X, Y><<<blocks, dim3(kTile, kTileRows), 0, stream_>>>(
        rows_of<X>(x), rows_of<Y>(y), static_cast<int>(x.rows), static_cast<int>(x.cols));
  });
  check_launch("transpose");
}

void CudaOps::copy(ConstView x, View y, Accumulate accumulate) {
  require(same_shape(x, y), "copy: shapes");
  if (Scratch(*this).rehearsing() || x.count() == 0) return;
  const ProfileSpan span = timed(KernelFamily::kCopy, traffic({x, y}));
  convert(x, y, accumulate);
}

void CudaOps::convert(ConstView x, View y, Accumulate accumulate) {
  with_source_type(x.dtype, [&]<class X>() {
    with_type(y.dtype, [&]<class Y>() {
      with_width(wide({x, y}), [&]<int N>() {
        const Packs<N> packs(x);
        copy_kernel<X, Y, N><<<packs.blocks(), kThreads, 0, stream_>>>(packs, rows_of<X>(x), rows_of<Y>(y),
                                                                       accumulate == Accumulate::kYes);
      });
    });
  });
  check_launch("copy");
}

void CudaOps::fill(View y, float value) {
  if (Scratch(*this).rehearsing() || y.count() == 0) return;
  const ProfileSpan span = timed(KernelFamily::kCopy, traffic({y}));
  with_type(y.dtype, [&]<class Y>() {
    with_width(wide({y}), [&]<int N>() {
      const Packs<N> packs(y);
      fill_kernel<Y, N><<<packs.blocks(), kThreads, 0, stream_>>>(packs, rows_of<Y>(y), value);
    });
  });
  check_launch("fill");
}

}  // namespace squareq::cuda
