// What one AdamW update takes from its settings, the same for every parameter.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/ops.h"

namespace squareq {

struct AdamFactors {
  explicit AdamFactors(const AdamW& p)
      : beta1(p.beta1),
        beta2(p.beta2),
        epsilon(p.epsilon),
        gradient_scale(p.gradient_scale),
        rate(p.learning_rate),
        keep(1.0F - p.learning_rate * p.weight_decay),
        correction1(correction(p.beta1, p.step)),
        correction2(correction(p.beta2, p.step)) {}

  static float correction(float beta, std::int64_t step) {
    return static_cast<float>(1.0 - std::pow(static_cast<double>(beta), static_cast<double>(step)));
  }

  float beta1, beta2, epsilon, gradient_scale, rate, keep, correction1, correction2;
};

}  // namespace squareq
