#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/vector_math.h"

namespace squareq {
namespace {

void check(const ConstView& x, const ConstView& y, const ConstView& gain, const ConstView& cosine,
           const ConstView& sine) {
  const std::int64_t d = gain.cols;
  require(same_shape(x, y) && d > 0 && d % 2 == 0 && gain.count() == d && x.cols % d == 0, "norm_rope: shapes");
  for (const ConstView& angle : {cosine, sine}) {
    require(angle.batch == 1 && angle.rows == x.rows && angle.cols == d / 2, "norm_rope: angles do not fit");
  }
}

float inverse_rms(const float* x, std::int64_t n, float epsilon) {
  const float squares = lane_sum(n, [&](std::int64_t c) { return x[c] * x[c]; });
  return 1.0F / std::sqrt(squares / static_cast<float>(n) + epsilon);
}

}  // namespace

void CpuOps::norm_rope(const NormRope& p) {
  check(p.x, p.y, p.gain, p.cosine, p.sine);
  const std::int64_t d = p.gain.cols;
  const float* gain = as_floats(p.gain, gain_);
  for_rows(p.x.batch, p.x.rows, p.x.cols, [&](std::int64_t b, std::int64_t t, int) {
    const float* cosine = p.cosine.f32(0, t);
    const float* sine = p.sine.f32(0, t);
    for (std::int64_t begin = 0; begin < p.x.cols; begin += d) {
      const float* x = p.x.f32(b, t) + begin;
      float* y = p.y.f32(b, t) + begin;
      const float inverse = inverse_rms(x, d, p.epsilon);
      for (std::int64_t i = 0; i < d / 2; ++i) {
        const float even = gain[2 * i] * (x[2 * i] * inverse);
        const float odd = gain[2 * i + 1] * (x[2 * i + 1] * inverse);
        y[2 * i] = cosine[i] * even - sine[i] * odd;
        y[2 * i + 1] = sine[i] * even + cosine[i] * odd;
      }
    }
  });
}

void CpuOps::norm_rope_backward(const NormRopeBackward& p) {
  check(p.x, p.dx, p.gain, p.cosine, p.sine);
  require(same_shape(p.dy, p.dx), "norm_rope_backward: shapes");
  const std::int64_t d = p.gain.cols;
  const float* gain = as_floats(p.gain, gain_);
  for_rows(p.x.batch, p.x.rows, p.x.cols, [&](std::int64_t b, std::int64_t t, int worker_index) {
    const float* cosine = p.cosine.f32(0, t);
    const float* sine = p.sine.f32(0, t);
    float* e = worker(worker_index).row.at_least(d);  // gain * (dy turned back)
    for (std::int64_t begin = 0; begin < p.x.cols; begin += d) {
      const float* x = p.x.f32(b, t) + begin;
      const float* dy = p.dy.f32(b, t) + begin;
      float* dx = p.dx.f32(b, t) + begin;
      for (std::int64_t i = 0; i < d / 2; ++i) {
        e[2 * i] = gain[2 * i] * (cosine[i] * dy[2 * i] + sine[i] * dy[2 * i + 1]);
        e[2 * i + 1] = gain[2 * i + 1] * (cosine[i] * dy[2 * i + 1] - sine[i] * dy[2 * i]);
      }
      const float inverse = inverse_rms(x, d, p.epsilon);
      const float mean = lane_sum(d, [&](std::int64_t c) { return e[c] * (x[c] * inverse); }) / static_cast<float>(d);
      for (std::int64_t c = 0; c < d; ++c) dx[c] = inverse * (e[c] - (x[c] * inverse) * mean);
    }
  });
}

}  // namespace squareq
