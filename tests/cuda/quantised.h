// INT8 rows in plain loops, to compare with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/base/view.h"

namespace squareq::test {

struct HostRows {
  std::vector<std::int8_t> values;  // [rows, cols]
  std::vector<float> scales;        // [rows]

  float at(std::int64_t row, std::int64_t col, std::int64_t cols) const {
    return scales[static_cast<std::size_t>(row)] *
           static_cast<float>(values[static_cast<std::size_t>(row * cols + col)]);
  }
};

// scale = max |x f| / 127, q = x f (127 / max |x f|) rounded half to even, all samples' rows in turn; `factors` may be
// null. The product of two float32 numbers is exact in float64.
inline HostRows quantise_on_host(const ConstView& x, const float* factors) {
  HostRows out;
  for (std::int64_t b = 0; b < x.batch; ++b) {
    for (std::int64_t r = 0; r < x.rows; ++r) {
      std::vector<float> row(x.f32(b, r), x.f32(b, r) + x.cols);
      float largest = 0.0F;
      for (std::size_t c = 0; c < row.size(); ++c) {
        if (factors != nullptr) row[c] *= factors[c];
        largest = std::max(largest, std::fabs(row[c]));
      }
      const float inverse = largest > 0.0F ? 127.0F / largest : 0.0F;
      out.scales.push_back(largest > 0.0F ? largest / 127.0F : 1.0F);
      for (const float value : row) {
        out.values.push_back(
            static_cast<std::int8_t>(std::nearbyint(static_cast<double>(value) * static_cast<double>(inverse))));
      }
    }
  }
  return out;
}

}  // namespace squareq::test
