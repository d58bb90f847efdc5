// Activation functions and their derivatives, free of branches.
#pragma once

#include "kernels/cpu/vector_math.h"

namespace squareq {

// sigmoid(z) and 1 - sigmoid(z), the latter without cancellation.
struct Sigmoid {
  float value;
  float complement;
};

inline Sigmoid sigmoid_pair(float z) {
  // Beyond 80 the sigmoid is below 1e-34; the limit keeps 0 * infinity out of the complement.
  const float e = fast_exp(z < -80.0F ? 80.0F : -z);
  const float value = 1.0F / (1.0F + e);
  return {value, e * value};
}

// 0.5 x (1 + tanh(w)) = x sigmoid(2 w), w = sqrt(2 / pi) (x + 0.044715 x^3)
inline constexpr float kGeluSlope = 1.5957691216057308F;  // 2 sqrt(2 / pi)
inline constexpr float kGeluCubic = 0.044715F;

inline float gelu_tanh(float x) { return x * sigmoid(kGeluSlope * (x + kGeluCubic * x * x * x)); }

inline float gelu_tanh_derivative(float x) {
  const Sigmoid s = sigmoid_pair(kGeluSlope * (x + kGeluCubic * x * x * x));
  return s.value + x * s.value * s.complement * kGeluSlope * (1.0F + 3.0F * kGeluCubic * x * x);
}

// x sigmoid(slope * x): SiLU with slope 1, quick-GELU with slope 1.702.
inline constexpr float kQuickGeluSlope = 1.702F;

inline float swish(float slope, float x) { return x * sigmoid(slope * x); }

inline float swish_derivative(float slope, float x) {
  const Sigmoid s = sigmoid_pair(slope * x);
  return s.value * (1.0F + slope * x * s.complement);
}

}  // namespace squareq
