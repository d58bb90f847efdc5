#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/reduce.cuh"

namespace squareq::cuda {
namespace {

// Threads that share one head of one row: with eight values each they hold the 128 features of FLUX's heads.
constexpr int kLanes = 16;
constexpr int kHeldFeatures = kLanes * kWide;

// The rows and heads that each group of kLanes threads works on, and the tables all of them read.
struct Heads {
  unsigned rows, heads, total;
  int features;
  AnyRows<const std::byte> gain;
  Rows<const float> cosine, sine;
  float epsilon;

  unsigned blocks() const { return ceil_div(std::int64_t{total} * kLanes, kThreads); }

  struct Place {
    unsigned b, t;
    int begin, lane;   // first feature of the head, and the place of this thread in its group
    unsigned threads;  // of the warp that are in the group
    bool inside;
  };
  __device__ Place mine() const {
    const unsigned i = (blockIdx.x * kThreads + threadIdx.x) / kLanes;
    const unsigned row = i / heads;
    return {.b = row / rows,
            .t = row % rows,
            .begin = static_cast<int>(i % heads) * features,
            .lane = static_cast<int>(threadIdx.x % kLanes),
            .threads = 0xFFFFU << (threadIdx.x & kLanes),
            .inside = i < total};
  }
};

// Wide packs (of kWide features and half as many angles) are held in registers; else pairs are read at each visit.
template <class T, int N, int kFeatures = N>
using Head = Row<T, N, kFeatures == kWide ? 1 : 0>;

// The angles of a row, on their way before the sums of the norm are waited for.
template <int N>
struct Turn {
  Head<float, N / 2, N> cosine, sine;

  __device__ Turn(const Heads& heads, unsigned t, int lane)
      : cosine(heads.cosine(0, t), heads.features / 2, lane, kLanes),
        sine(heads.sine(0, t), heads.features / 2, lane, kLanes) {}
};

template <class X, class Y, int N>
__global__ void __launch_bounds__(kThreads) norm_rope_kernel(Heads heads, Rows<const X> x, Rows<Y> y) {
  const auto [b, t, begin, lane, threads, inside] = heads.mine();
  if (!inside) return;
  const Head<X, N> head(x(b, t) + begin, heads.features, lane, kLanes);
  const Turn<N> turn(heads, t, lane);
  float squares = 0.0F;
  head.each([&](int i, int c) {
    const Pack<X, N> from = head.at(i, c);
    for (int j = 0; j < N; ++j) squares += from[j] * from[j];
  });
  squares = group_sum(squares, kLanes, threads);
  const float inverse = 1.0F / sqrtf(squares / static_cast<float>(heads.features) + heads.epsilon);
  Y* to = y(b, t) + begin;
  head.each([&](int i, int c) {
    const Pack<X, N> from = head.at(i, c);
    const Pack<float, N / 2> cosine = turn.cosine.at(i, c / 2);
    const Pack<float, N / 2> sine = turn.sine.at(i, c / 2);
    float gain[N], v[N];
    heads.gain.load(0, 0, c, gain);
    for (int j = 0; j < N; j += 2) {
      const float even = gain[j] * (from[j] * inverse);
      const float odd = gain[j + 1] * (from[j + 1] * inverse);
      v[j] = cosine[j / 2] * even - sine[j / 2] * odd;
      v[j + 1] = sine[j / 2] * even + cosine[j / 2] * odd;
    }
    store<N>(to + c, v);
  });
}

// With e = gain * (dy turned back) and n = x * inverse: dx = inverse * (e - n * mean(e n)). dx may be dy: each thread
// writes just what it alone has read.
template <class X, class D, int N>
__global__ void __launch_bounds__(kThreads)
    norm_rope_backward_kernel(Heads heads, Rows<const D> dy, Rows<const X> x, AnyRows<std::byte> dx) {
  const auto [b, t, begin, lane, threads, inside] = heads.mine();
  if (!inside) return;
  const Head<X, N> head(x(b, t) + begin, heads.features, lane, kLanes);
  const Head<D, N> dhead(dy(b, t) + begin, heads.features, lane, kLanes);
  const Turn<N> turn(heads, t, lane);
  const auto turn_back = [&](int i, int c, float(&e)[N]) {
    const Pack<D, N> d = dhead.at(i, c);
    const Pack<float, N / 2> cosine = turn.cosine.at(i, c / 2);
    const Pack<float, N / 2> sine = turn.sine.at(i, c / 2);
    float gain[N];
    heads.gain.load(0, 0, c, gain);
    for (int j = 0; j < N; j += 2) {
      e[j] = gain[j] * (cosine[j / 2] * d[j] + sine[j / 2] * d[j + 1]);
      e[j + 1] = gain[j + 1] * (cosine[j / 2] * d[j + 1] - sine[j / 2] * d[j]);
    }
  };
  float squares = 0.0F;
  float products = 0.0F;
  float e[N];  // in the wide case of the one pack, so that it need not be computed again
  head.each([&](int i, int c) {
    const Pack<X, N> from = head.at(i, c);
    turn_back(i, c, e);
    for (int j = 0; j < N; ++j) {
      squares += from[j] * from[j];
      products += e[j] * from[j];
    }
  });
  const auto n = static_cast<float>(heads.features);
  const float inverse = 1.0F / sqrtf(group_sum(squares, kLanes, threads) / n + heads.epsilon);
  const float mean = group_sum(products, kLanes, threads) * inverse / n;
  head.each([&](int i, int c) {
    const Pack<X, N> from = head.at(i, c);
    float v[N];
    if constexpr (N != kWide) turn_back(i, c, e);
    for (int j = 0; j < N; ++j) v[j] = inverse * (e[j] - (from[j] * inverse) * mean);
    dx.store(b, t, begin + c, v);
  });
}

Heads heads_of(const ConstView& x, const ConstView& y, const ConstView& gain, const ConstView& cosine,
               const ConstView& sine, float epsilon) {
  const std::int64_t d = gain.cols;
  require(same_shape(x, y) && d > 0 && d % 2 == 0 && gain.count() == d && x.cols % d == 0, "norm_rope: shapes");
  for (const ConstView& angle : {cosine, sine}) {
    require(angle.batch == 1 && angle.rows == x.rows && angle.cols == d / 2, "norm_rope: angles do not fit");
  }
  const std::int64_t total = x.batch * x.rows * (x.cols / d);
  require(total * kLanes <= (std::int64_t{1} << 31), "norm_rope: the tensor is too large for one CUDA operation");
  return {.rows = static_cast<unsigned>(x.rows),
          .heads = static_cast<unsigned>(x.cols / d),
          .total = static_cast<unsigned>(total),
          .features = static_cast<int>(d),
          .gain = any_rows(gain),
          .cosine = float_rows(cosine),
          .sine = float_rows(sine),
          .epsilon = epsilon};
}

bool held(const ConstView& gain, const ConstView& cosine, const ConstView& sine) {
  const auto aligned = [](const ConstView& v) {  // half as many angles as features: four at a time
    return reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0 && (v.rows == 1 || v.row_stride % 4 == 0);
  };
  return gain.cols <= kHeldFeatures && wide({gain}) && aligned(cosine) && aligned(sine);
}

// As with_types, but with pairs where packs cannot be wide: RoPE turns two values at once.
template <class Function>
void with_pairs(DType a, DType b, bool is_wide, Function f) {
  with_types(a, b, is_wide, [&]<class A, class B, int N>() { f.template operator()<A, B, N == 1 ? 2 : N>(); });
}

}  // namespace

void CudaOps::norm_rope(const NormRope& p) {
  const Heads heads = heads_of(p.x, p.y, p.gain, p.cosine, p.sine, p.epsilon);
  if (Scratch(*this).rehearsing() || heads.total == 0) return;
  const ProfileSpan span = timed(KernelFamily::kElementwise, traffic({p.x, p.y}));
  const bool is_wide = held(p.gain, p.cosine, p.sine) && wide({p.x, p.y});
  with_pairs(p.x.dtype, p.y.dtype, is_wide, [&]<class X, class Y, int N>() {
    norm_rope_kernel<X, Y, N><<<heads.blocks(), kThreads, 0, stream_>>>(heads, rows_of<X>(p.x), rows_of<Y>(p.y));
  });
  check_launch("norm_rope");
}

void CudaOps::norm_rope_backward(const NormRopeBackward& p) {
  const Heads heads = heads_of(p.x, p.dx, p.gain, p.cosine, p.sine, p.epsilon);
  require(same_shape(p.dy, p.dx), "norm_rope_backward: shapes");
  if (Scratch(*this).rehearsing() || heads.total == 0) return;
  const ProfileSpan span = timed(KernelFamily::kElementwise, traffic({p.x, p.dy, p.dx}));
  const bool is_wide = held(p.gain, p.cosine, p.sine) && wide({p.x, p.dy, p.dx});
  with_pairs(p.x.dtype, p.dy.dtype, is_wide, [&]<class X, class D, int N>() {
    norm_rope_backward_kernel<X, D, N>
        <<<heads.blocks(), kThreads, 0, stream_>>>(heads, rows_of<D>(p.dy), rows_of<X>(p.x), any_rows(p.dx));
  });
  check_launch("norm_rope_backward");
}

}  // namespace squareq::cuda
