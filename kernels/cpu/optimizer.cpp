#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/vector_math.h"

namespace squareq {
namespace {

struct AdamFactors {
  float beta1, beta2, epsilon, gradient_scale, rate, keep, correction1, correction2;
};

// Factors by value and pointers that promise not to overlap: else every store could change what is read next, and the
// loop would not vectorise.
void adamw_piece(const AdamFactors f, std::int64_t n, const float* __restrict gradient, float* __restrict w,
                 float* __restrict mean, float* __restrict variance) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = gradient[i] * f.gradient_scale;
    mean[i] = f.beta1 * mean[i] + (1.0F - f.beta1) * g;
    variance[i] = f.beta2 * variance[i] + (1.0F - f.beta2) * g * g;
    const float denominator = std::sqrt(variance[i] / f.correction2) + f.epsilon;
    w[i] = f.keep * w[i] - f.rate * (mean[i] / f.correction1) / denominator;
  }
}

}  // namespace

void CpuOps::adamw(const AdamW& p) {
  require(same_shape(p.parameters, p.gradients) && same_shape(p.parameters, p.mean) &&
              same_shape(p.parameters, p.variance) && p.step >= 1,
          "adamw: shapes or step");
  const auto correction = [&](float beta) {
    return static_cast<float>(1.0 - std::pow(static_cast<double>(beta), static_cast<double>(p.step)));
  };
  const float correction1 = correction(p.beta1);
  const float correction2 = correction(p.beta2);
  for_pieces(p.parameters.batch, p.parameters.rows, p.parameters.cols,
             [&](std::int64_t b, std::int64_t t, std::int64_t begin, std::int64_t n) {
               adamw_piece({.beta1 = p.beta1,
                            .beta2 = p.beta2,
                            .epsilon = p.epsilon,
                            .gradient_scale = p.gradient_scale,
                            .rate = p.learning_rate,
                            .keep = 1.0F - p.learning_rate * p.weight_decay,
                            .correction1 = correction1,
                            .correction2 = correction2},
                           n, p.gradients.f32(b, t) + begin, p.parameters.f32(b, t) + begin, p.mean.f32(b, t) + begin,
                           p.variance.f32(b, t) + begin);
             });
}

}  // namespace squareq
