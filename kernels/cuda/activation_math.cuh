// Activation functions and their derivatives in kernels: the formulae of kernels/cpu/activation_math.h. The fast
// exponential and division cost an absolute 1e-7 of a sigmoid; the exact ones would take longer than the memory
// accesses.
#pragma once

#include <stdexcept>

#include "kernels/ops.h"

namespace squareq::cuda {

// Activation functions are x sigmoid(z), z = slope * (x + cubic * x^3); the parameters are chosen on the host.
struct Sigmoidal {
  float slope, cubic;

  __device__ float argument(float x) const { return slope * (x + cubic * x * x * x); }
  // e^-z, limited so that 0 * infinity stays out of a derivative; the sigmoid is then below 1e-34.
  static __device__ float exponential(float z) { return __expf(fminf(-z, 80.0F)); }

  __device__ float value(float x) const { return x * __fdividef(1.0F, 1.0F + exponential(argument(x))); }

  __device__ float derivative(float x) const {
    const float e = exponential(argument(x));
    const float s = __fdividef(1.0F, 1.0F + e);
    return s + x * s * (e * s) * slope * (1.0F + 3.0F * cubic * x * x);
  }
};

inline Sigmoidal sigmoidal(Activation f) {
  switch (f) {
    case Activation::kSilu: return {.slope = 1.0F, .cubic = 0.0F};
    case Activation::kGeluTanh: return {.slope = 1.5957691216057308F, .cubic = 0.044715F};  // slope 2 sqrt(2 / pi)
    case Activation::kQuickGelu: return {.slope = 1.702F, .cubic = 0.0F};
  }
  throw std::logic_error("activation: unknown");
}

}  // namespace squareq::cuda
