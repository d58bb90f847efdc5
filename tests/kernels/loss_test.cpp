#include <array>
#include <memory>

#include "kernels/ops.h"
#include "tests/catch.h"
#include "tests/kernels/tensor.h"

namespace squareq::test {

TEST_CASE("flow_loss and its gradient agree with the formula and with central differences") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  for (const LossKind kind : {LossKind::kSquared, LossKind::kHuber}) {
    for (const bool weighted : {false, true}) {
      for (const Memory memory : {Memory::kContiguous, Memory::kSlice}) {
        Tensor prediction(2, 5, 19, 1, memory), target(2, 5, 19, 2, memory), d(2, 5, 19, 3, memory);
        const Tensor weight(2, 5, 1, 4, memory);
        const std::array<float, 2> factors{0.3F, -1.7F};
        std::array<float, 2> loss{}, loss_alone{};
        const auto run = [&](std::span<float> to, View dprediction) {
          ops->flow_loss({.prediction = prediction,
                          .target = target,
                          .weight = weighted ? ConstView(weight) : ConstView(),
                          .kind = kind,
                          .huber_c = 0.4F,
                          .gradient_weight = factors,
                          .loss = to,
                          .dprediction = dprediction});
        };
        run(loss, d);
        run(loss_alone, {});
        CHECK(loss == loss_alone);

        const Doubles wanted = doubles(target), w = doubles(weight);
        const auto c = static_cast<double>(0.4F);
        const auto losses = [&](const Doubles& y) {
          Doubles result(2);
          for (std::size_t i = 0; i < y.size(); ++i) {
            const double square = (y[i] - wanted[i]) * (y[i] - wanted[i]);
            const double value = kind == LossKind::kSquared ? square : 2.0 * c * (std::sqrt(square + c * c) - c);
            result[i / 95] += (weighted ? w[i / 19] : 1.0) * value / 95.0;
          }
          return result;
        };
        const Doubles expected = losses(doubles(prediction));
        for (std::size_t b = 0; b < 2; ++b) {
          CHECK(std::fabs(static_cast<double>(loss[b]) - expected[b]) <= 2e-6 * std::fabs(expected[b]));
        }
        const Doubles cotangent{static_cast<double>(factors[0]), static_cast<double>(factors[1])};
        CHECK(error(d, numeric_gradient(doubles(prediction), cotangent, losses)) <= kGradientTolerance);
        for (Tensor* t : {&prediction, &target, &d}) CHECK(t->surroundings_kept());
      }
    }
  }
}

TEST_CASE("sum_of_squares is exact to float64 and does not depend on the number of threads") {
  const std::unique_ptr<Ops> one = make_cpu_ops(1);
  const std::unique_ptr<Ops> three = make_cpu_ops(3);
  const Tensor x(1, 1, 70001, 1);
  double expected = 0.0;
  for (const double v : doubles(x)) expected += v * v;
  CHECK(std::fabs(one->sum_of_squares(x) - expected) <= 1e-13 * expected);
  CHECK(one->sum_of_squares(x) == three->sum_of_squares(x));
  CHECK_THROWS_AS(one->sum_of_squares(Tensor(2, 3, 4, 1, Memory::kSlice)), std::logic_error);
}

}  // namespace squareq::test
