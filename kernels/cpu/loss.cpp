#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/vector_math.h"

namespace squareq {
namespace {

template <LossKind kKind>
float value_of(float d, float c) {
  // Not 2 c (root - c): small differences would cancel.
  return kKind == LossKind::kSquared ? d * d : 2.0F * c * d * d / (std::sqrt(d * d + c * c) + c);
}

template <LossKind kKind>
float slope_of(float d, float c) {
  return kKind == LossKind::kSquared ? 2.0F * d : 2.0F * c * d / std::sqrt(d * d + c * c);
}

// Sum of f over a row of differences y - target; d, unless null, becomes factor * f' of each.
template <LossKind kKind>
double loss_of_row(std::int64_t n, const float* y, const float* target, float c, float factor, float* d) {
  const double sum = lane_sum<double>(n, [&](std::int64_t i) { return value_of<kKind>(y[i] - target[i], c); });
  for (std::int64_t i = 0; d != nullptr && i < n; ++i) d[i] = factor * slope_of<kKind>(y[i] - target[i], c);
  return sum;
}

}  // namespace

void CpuOps::flow_loss(const FlowLoss& p) {
  const auto batch = static_cast<std::size_t>(p.prediction.batch);
  const std::int64_t rows = p.prediction.rows;
  const std::int64_t cols = p.prediction.cols;
  require(same_shape(p.prediction, p.target) && p.loss.size() == batch, "flow_loss: shapes");
  require(!p.weight || (p.weight.batch == p.prediction.batch && p.weight.rows == rows && p.weight.cols == 1),
          "flow_loss: weights do not fit");
  require(!p.dprediction || (same_shape(p.prediction, p.dprediction) && p.gradient_weight.size() == batch),
          "flow_loss: gradient does not fit");
  const double count = static_cast<double>(rows) * static_cast<double>(cols);
  const auto row_loss = p.kind == LossKind::kHuber ? loss_of_row<LossKind::kHuber> : loss_of_row<LossKind::kSquared>;
  std::vector<double> row_sums(batch * static_cast<std::size_t>(rows));
  for_rows(p.prediction.batch, rows, cols, [&](std::int64_t b, std::int64_t t, int) {
    const double weight = p.weight ? static_cast<double>(*p.weight.f32(b, t)) : 1.0;
    float* d = p.dprediction ? p.dprediction.f32(b, t) : nullptr;
    const double factor = d == nullptr ? 0.0 : static_cast<double>(p.gradient_weight[static_cast<std::size_t>(b)]);
    row_sums[static_cast<std::size_t>(b * rows + t)] =
        weight * row_loss(cols, p.prediction.f32(b, t), p.target.f32(b, t), p.huber_c,
                          static_cast<float>(weight * factor / count), d);
  });
  for (std::size_t b = 0; b < batch; ++b) {
    double sum = 0.0;
    for (std::size_t t = 0; t < static_cast<std::size_t>(rows); ++t) {
      sum += row_sums[b * static_cast<std::size_t>(rows) + t];
    }
    p.loss[b] = static_cast<float>(sum / count);
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

}  // namespace squareq
