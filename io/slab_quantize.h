// INT8 rows: how the slab stores the weights of linear layers, and what that costs.
#pragma once

#include <cstdint>

namespace squareq {

// Sums over a set of weights w and their stored values v, from which the errors of a layer follow.
struct QuantizationError {
  double difference = 0.0;  // sum (v - w)^2
  double source = 0.0;      // sum w^2
  double stored = 0.0;      // sum v^2
  double product = 0.0;     // sum v w
  float max_abs = 0.0F;     // max |v - w|

  void add(const QuantizationError& other);
  double relative_l2() const;  // sqrt(sum (v - w)^2 / sum w^2), 0 if all weights are zero
  double cosine() const;       // of the angle between w and v, 1 if all weights are zero
};

// Symmetric per output row: scale = max|w| / 127 in float32, q = round half to even of w / scale, clamped to +-127; the
// scale is 1 where all weights are zero (or too small for the scale to be a float). w [rows, cols] must be finite;
// fills q [rows, cols] and scales [rows], returns the error of scale * q.
QuantizationError quantize_rows(const float* w, std::int64_t rows, std::int64_t cols, std::int8_t* q, float* scales);

}  // namespace squareq
