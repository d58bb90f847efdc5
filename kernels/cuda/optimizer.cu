#include <cmath>

#include "kernels/adam_factors.h"
#include "kernels/base/random.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/reduce.cuh"

namespace squareq::cuda {
namespace {

__device__ inline void update(const AdamFactors& f, float gradient, float& w, float& m, float& v) {
  const float g = gradient * f.gradient_scale;
  m = f.beta1 * m + (1.0F - f.beta1) * g;
  v = f.beta2 * v + (1.0F - f.beta2) * g * g;
  const float denominator = sqrtf(v / f.correction2) + f.epsilon;
  w = f.keep * w - f.rate * (m / f.correction1) / denominator;
}

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
  for (int i = 0; i < N; ++i) update(f, gradient[i], w[i], m[i], v[i]);
  store<N>(parameters(b, t) + c, w);
  store<N>(mean(b, t) + c, m);
  store<N>(variance(b, t) + c, v);
}

// The code of a magnitude x in [0, 1] of a scale with codes 0..top: one of its two neighbours, see AdamW.
__device__ int code_of(float x, float top, unsigned dither) {
  const float y = x * top * top;
  const float low = fminf(floorf(sqrtf(y)), top - 1.0F);
  const float threshold = (static_cast<float>(dither) + 0.5F) * 0x1p-16F;
  return static_cast<int>(low) + (threshold * (2.0F * low + 1.0F) < y - low * low ? 1 : 0);
}

__device__ float value_of(int code, float top) {
  const float x = static_cast<float>(code) / top;
  return x * fabsf(x);
}

__device__ float warp_max(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFU, value, step));
  return value;
}

// A warp for each block of moments; lane l has the values l, l + 32, ..
template <class G>
__global__ void __launch_bounds__(kThreads)
    adamw_codes_kernel(std::int64_t count, unsigned step, AdamFactors f, const G* __restrict__ gradients,
                       float* __restrict__ parameters, std::int8_t* __restrict__ means,
                       std::uint8_t* __restrict__ roots, float* __restrict__ mean_scales,
                       float* __restrict__ root_scales) {
  constexpr int kValues = kMomentBlock / kWarp;
  const std::int64_t block = blockIdx.x * std::int64_t{kThreads / kWarp} + threadIdx.x / kWarp;
  const std::int64_t first = block * kMomentBlock + threadIdx.x % kWarp;
  if (block * kMomentBlock >= count) return;
  float mean_scale = mean_scales[block];
  float root_scale = root_scales[block];
  float mean[kValues], root[kValues];
#pragma unroll
  for (int j = 0; j < kValues; ++j) {
    const std::int64_t i = first + j * kWarp;
    mean[j] = root[j] = 0.0F;
    if (i >= count) continue;
    float w = parameters[i];
    root[j] = root_scale * value_of(roots[i], 255.0F);
    mean[j] = mean_scale * value_of(means[i], 127.0F);
    float variance = root[j] * root[j];
    update(f, to_float(gradients[i]), w, mean[j], variance);
    root[j] = sqrtf(variance);
    parameters[i] = w;
  }
  mean_scale = root_scale = 0.0F;
#pragma unroll
  for (int j = 0; j < kValues; ++j) {
    mean_scale = fmaxf(mean_scale, fabsf(mean[j]));
    root_scale = fmaxf(root_scale, root[j]);
  }
  mean_scale = warp_max(mean_scale);
  root_scale = warp_max(root_scale);
  if (threadIdx.x % kWarp == 0) {
    mean_scales[block] = mean_scale;
    root_scales[block] = root_scale;
  }
#pragma unroll
  for (int j = 0; j < kValues; ++j) {
    const std::int64_t i = first + j * kWarp;
    if (i >= count) continue;
    const unsigned dither = hash32(static_cast<unsigned>(i), step);
    const int m = mean_scale > 0.0F ? code_of(fabsf(mean[j]) / mean_scale, 127.0F, dither & 0xFFFFU) : 0;
    const int r = root_scale > 0.0F ? code_of(root[j] / root_scale, 255.0F, dither >> 16U) : 0;
    means[i] = static_cast<std::int8_t>(mean[j] < 0.0F ? -m : m);
    roots[i] = static_cast<std::uint8_t>(r == 0 && root[j] > 0.0F ? 1 : r);
  }
}

template <int N>
__global__ void __launch_bounds__(kThreads)
    lerp_kernel(Packs<N> packs, Rows<const float> from, float weight, Rows<float> to) {
  const auto [b, t, c, inside] = packs.mine();
  if (!inside) return;
  const Pack<float, N> x = load<N>(from(b, t) + c);
  float y[N];
  load<N>(to(b, t) + c, y);
  for (int i = 0; i < N; ++i) y[i] += weight * (x[i] - y[i]);
  store<N>(to(b, t) + c, y);
}

}  // namespace

void CudaOps::adamw(const AdamW& p) {
  require(same_shape(p.parameters, p.gradients) && same_shape(p.parameters, p.mean) &&
              same_shape(p.parameters, p.variance) && p.step >= 1,
          "adamw: shapes or step");
  if (p.mean.dtype != DType::F32) return adamw_codes(p);
  if (Scratch(*this).rehearsing() || p.parameters.count() == 0) return;
  const ProfileSpan span =
      timed(KernelFamily::kOptimizer, 2.0 * traffic({p.parameters, p.mean, p.variance}) + traffic({p.gradients}));
  const AdamFactors factors(p);
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

void CudaOps::adamw_codes(const AdamW& p) {
  const std::int64_t count = p.parameters.count();
  const std::int64_t blocks = ceil_div(count, kMomentBlock);
  require(p.parameters.cols == count && p.parameters.dtype == DType::F32 && p.mean.dtype == DType::I8 &&
              p.variance.dtype == DType::U8 && p.mean_scale.cols == blocks && p.variance_scale.cols == blocks,
          "adamw: codes or their scales do not fit");
  if (Scratch(*this).rehearsing() || count == 0) return;
  const ProfileSpan span =
      timed(KernelFamily::kOptimizer, 2.0 * traffic({p.parameters, p.mean, p.variance}) + traffic({p.gradients}));
  with_type(p.gradients.dtype, [&]<class G>() {
    adamw_codes_kernel<G><<<ceil_div(blocks, kThreads / kWarp), kThreads, 0, stream_>>>(
        count, static_cast<unsigned>(p.step), AdamFactors(p), reinterpret_cast<const G*>(p.gradients.data),
        reinterpret_cast<float*>(p.parameters.data), reinterpret_cast<std::int8_t*>(p.mean.data),
        reinterpret_cast<std::uint8_t*>(p.variance.data), float_rows(p.mean_scale).data,
        float_rows(p.variance_scale).data);
  });
  check_launch("adamw_codes");
}

void CudaOps::lerp(ConstView x, float weight, View y) {
  require(same_shape(x, y), "lerp: shapes");
  if (Scratch(*this).rehearsing() || y.count() == 0) return;
  const ProfileSpan span = timed(KernelFamily::kOptimizer, traffic({x}) + 2.0 * traffic({y}));
  with_width(wide({x, y}), [&]<int N>() {
    const Packs<N> packs(y);
    lerp_kernel<N><<<packs.blocks(), kThreads, 0, stream_>>>(packs, float_rows(x), weight, float_rows(y));
  });
  check_launch("lerp");
}

}  // namespace squareq::cuda
