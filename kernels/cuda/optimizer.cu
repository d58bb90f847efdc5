#include <cmath>

#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/pack.cuh"

namespace squareq::cuda {
namespace {

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
