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

void CpuOps::squared_error(ConstView prediction, ConstView target, std::span<const float> gradient_weight,
                           std::span<float> loss, View dprediction) {
  const auto batch = static_cast<std::size_t>(prediction.batch);
  require(same_shape(prediction, target) && loss.size() == batch, "squared_error: shapes");
  require(!dprediction || (same_shape(prediction, dprediction) && gradient_weight.size() == batch),
          "squared_error: gradient does not fit");
  const std::int64_t rows = prediction.rows;
  const std::int64_t cols = prediction.cols;
  const double count = static_cast<double>(rows) * static_cast<double>(cols);
  std::vector<double> row_sums(batch * static_cast<std::size_t>(rows));
  for_rows(prediction.batch, rows, cols, [&](std::int64_t b, std::int64_t t, int) {
    const float* y = prediction.f32(b, t);
    const float* wanted = target.f32(b, t);
    row_sums[static_cast<std::size_t>(b * rows + t)] =
        lane_sum<double>(cols, [&](std::int64_t c) { return (y[c] - wanted[c]) * (y[c] - wanted[c]); });
    if (!dprediction) return;
    const auto factor =
        static_cast<float>(2.0 * static_cast<double>(gradient_weight[static_cast<std::size_t>(b)]) / count);
    float* d = dprediction.f32(b, t);
    for (std::int64_t c = 0; c < cols; ++c) d[c] = factor * (y[c] - wanted[c]);
  });
  for (std::size_t b = 0; b < batch; ++b) {
    double sum = 0.0;
    for (std::size_t t = 0; t < static_cast<std::size_t>(rows); ++t) {
      sum += row_sums[b * static_cast<std::size_t>(rows) + t];
    }
    loss[b] = static_cast<float>(sum / count);
  }
}

double CpuOps::sum_of_squares(ConstView x) {
  require(x.contiguous(), "sum_of_squares: the view must be contiguous");
  constexpr std::int64_t kPiece = 16384;
  const std::int64_t count = x.count();
  const float* from = x.f32();
  std::vector<double> sums(static_cast<std::size_t>(ceil_div(count, kPiece)));
  pool_.parallel_for(static_cast<std::int64_t>(sums.size()), [&](std::int64_t piece, int) {
    const float* v = from + piece * kPiece;
    sums[static_cast<std::size_t>(piece)] =
        lane_sum<double>(std::min(kPiece, count - piece * kPiece),
                         [&](std::int64_t i) { return static_cast<double>(v[i]) * static_cast<double>(v[i]); });
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

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
