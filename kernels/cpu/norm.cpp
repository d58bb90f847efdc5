#include <cmath>

#include "kernels/cpu/activation_math.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/vector_math.h"

namespace squareq {
namespace {

struct Statistics {
  float mean;
  float inverse;  // 1 / sqrt(var + eps)
};

Statistics statistics_of(const float* x, std::int64_t n, float epsilon) {
  const auto count = static_cast<float>(n);
  const float mean = lane_sum(n, [&](std::int64_t c) { return x[c]; }) / count;
  const float variance = lane_sum(n, [&](std::int64_t c) { return (x[c] - mean) * (x[c] - mean); }) / count;
  return {mean, 1.0F / std::sqrt(variance + epsilon)};
}

bool per_sample(const ConstView& v, const ConstView& x) {
  return v && v.batch == x.batch && v.rows == 1 && v.cols == x.cols;
}

}  // namespace

void CpuOps::modulated_norm(const ModulatedNorm& p) {
  require(same_shape(p.x, p.y) && per_sample(p.scale, p.x) && per_sample(p.shift, p.x), "modulated_norm: shapes");
  for_rows(p.x.batch, p.x.rows, p.x.cols, [&](std::int64_t b, std::int64_t t, int) {
    const float* x = p.x.f32(b, t);
    const float* scale = p.scale.f32(b);
    const float* shift = p.shift.f32(b);
    float* y = p.y.f32(b, t);
    const auto [mean, inverse] = statistics_of(x, p.x.cols, p.epsilon);
    for (std::int64_t c = 0; c < p.x.cols; ++c) y[c] = (1.0F + scale[c]) * ((x[c] - mean) * inverse) + shift[c];
  });
}

void CpuOps::modulated_norm_backward(const ModulatedNormBackward& p) {
  require(same_shape(p.x, p.dy) && per_sample(p.scale, p.x) && (!p.dx || same_shape(p.dx, p.x)) &&
              (!p.dscale || per_sample(p.dscale, p.x)) && (!p.dshift || per_sample(p.dshift, p.x)),
          "modulated_norm_backward: shapes");
  const std::int64_t n = p.x.cols;
  const bool add = p.accumulate == Accumulate::kYes;
  float* statistics = p.dscale ? statistics_.at_least(2 * p.x.batch * p.x.rows) : nullptr;
  if (p.dx || p.dscale) {
    for_rows(p.x.batch, p.x.rows, n, [&](std::int64_t b, std::int64_t t, int) {
      const float* x = p.x.f32(b, t);
      const Statistics s = statistics_of(x, n, p.epsilon);
      const float mean = s.mean;
      const float inverse = s.inverse;
      if (statistics != nullptr) {
        float* to = statistics + 2 * (b * p.x.rows + t);
        to[0] = mean;
        to[1] = inverse;
      }
      if (!p.dx) return;
      const float* dy = p.dy.f32(b, t);
      const float* scale = p.scale.f32(b);
      float* dx = p.dx.f32(b, t);
      const auto e = [&](std::int64_t c) { return dy[c] * (1.0F + scale[c]); };
      const float mean_e = lane_sum(n, e) / static_cast<float>(n);
      const float mean_ex =
          lane_sum(n, [&](std::int64_t c) { return e(c) * ((x[c] - mean) * inverse); }) / static_cast<float>(n);
      for (std::int64_t c = 0; c < n; ++c) {
        const float normalised = (x[c] - mean) * inverse;
        const float d = inverse * (e(c) - mean_e - normalised * mean_ex);
        dx[c] = add ? dx[c] + d : d;
      }
    });
  }
  if (p.dscale) {
    column_sums(p.x.rows, p.dscale, [&](std::int64_t b, std::int64_t t, std::int64_t c) {
      const float* s = statistics + 2 * (b * p.x.rows + t);
      return p.dy.f32(b, t)[c] * ((p.x.f32(b, t)[c] - s[0]) * s[1]);
    });
  }
  if (p.dshift) {
    column_sums(p.x.rows, p.dshift, [&](std::int64_t b, std::int64_t t, std::int64_t c) { return p.dy.f32(b, t)[c]; });
  }
}

void CpuOps::layer_norm(ConstView x, ConstView gain, ConstView bias, float epsilon, View y) {
  require(same_shape(x, y) && gain.count() == x.cols && bias.count() == x.cols, "layer_norm: shapes");
  const float* g = as_floats(gain, gain_);
  const float* shift = as_floats(bias, bias_);
  for_rows(x.batch, x.rows, x.cols, [&](std::int64_t b, std::int64_t t, int) {
    const float* from = x.f32(b, t);
    float* to = y.f32(b, t);
    const auto [mean, inverse] = statistics_of(from, x.cols, epsilon);
    for (std::int64_t c = 0; c < x.cols; ++c) to[c] = g[c] * ((from[c] - mean) * inverse) + shift[c];
  });
}

void CpuOps::rms_norm(ConstView x, ConstView gain, float epsilon, View y) {
  require(same_shape(x, y) && gain.count() == x.cols, "rms_norm: shapes");
  const float* g = as_floats(gain, gain_);
  for_rows(x.batch, x.rows, x.cols, [&](std::int64_t b, std::int64_t t, int) {
    const float* from = x.f32(b, t);
    float* to = y.f32(b, t);
    const float squares = lane_sum(x.cols, [&](std::int64_t c) { return from[c] * from[c]; });
    const float inverse = 1.0F / std::sqrt(squares / static_cast<float>(x.cols) + epsilon);
    for (std::int64_t c = 0; c < x.cols; ++c) to[c] = g[c] * (from[c] * inverse);
  });
}

void CpuOps::group_norm(const GroupNorm& p) {
  require(same_shape(p.x, p.y) && p.groups > 0 && p.x.cols % p.groups == 0 && p.gain.count() == p.x.cols &&
              p.bias.count() == p.x.cols,
          "group_norm: shapes");
  const std::int64_t n = p.x.cols;
  const std::int64_t channels = n / p.groups;
  const float* gain = as_floats(p.gain, gain_);
  const float* bias = as_floats(p.bias, bias_);
  const double count = static_cast<double>(channels) * static_cast<double>(p.x.rows);
  float* mean = statistics_.at_least(3 * p.x.batch * n);  // of every channel's group
  float* sums = mean + p.x.batch * n;                     // of one channel
  float* inverse = sums + p.x.batch * n;
  const auto column_sums_of = [&](auto term) {
    column_sums(p.x.rows, View(reinterpret_cast<std::byte*>(sums), DType::F32, p.x.batch, 1, n), term);
  };
  const auto group_sum = [&](std::int64_t first) {
    double sum = 0.0;
    for (std::int64_t c = first; c < first + channels; ++c) sum += static_cast<double>(sums[c]);
    return sum;
  };
  column_sums_of([&](std::int64_t b, std::int64_t t, std::int64_t c) { return p.x.f32(b, t)[c]; });
  for (std::int64_t first = 0; first < p.x.batch * n; first += channels) {
    std::fill_n(mean + first, channels, static_cast<float>(group_sum(first) / count));
  }
  column_sums_of([&](std::int64_t b, std::int64_t t, std::int64_t c) {
    const float d = p.x.f32(b, t)[c] - mean[b * n + c];
    return d * d;
  });
  for (std::int64_t first = 0; first < p.x.batch * n; first += channels) {
    const double variance = group_sum(first) / count;
    std::fill_n(inverse + first, channels,
                static_cast<float>(1.0 / std::sqrt(variance + static_cast<double>(p.epsilon))));
  }
  for_rows(p.x.batch, p.x.rows, n, [&](std::int64_t b, std::int64_t t, int) {
    const float* x = p.x.f32(b, t);
    const float* m = mean + b * n;
    const float* factor = inverse + b * n;
    float* y = p.y.f32(b, t);
    for (std::int64_t c = 0; c < n; ++c) y[c] = (x[c] - m[c]) * (gain[c] * factor[c]) + bias[c];
    for (std::int64_t c = 0; p.silu && c < n; ++c) y[c] = swish(1.0F, y[c]);
  });
}

}  // namespace squareq
