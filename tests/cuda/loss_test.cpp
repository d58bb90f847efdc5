#include <array>

#include "tests/cuda/both.h"

namespace squareq::test {

TEST_CASE("CUDA flow_loss and its gradient compute what the CPU does") {
  if (!gpu()) return;
  const std::array<float, 2> factors{0.3F, -1.7F};
  for (const std::int64_t cols : {19, 64, 4099}) {
    for (const std::int64_t pad : {0, 6, 16}) {
      for (const DType in : {DType::BF16, DType::F32}) {
        for (const LossKind kind : {LossKind::kSquared, LossKind::kHuber}) {
          const Twin prediction(2, 300, cols, 1, in, pad), target(2, 300, cols, 2, DType::F32, pad);
          const Twin weight(2, 300, 1, 4, DType::F32, pad);
          Twin d(2, 300, cols, 3, in, pad);
          std::array<float, 2> loss{}, expected{}, alone{};
          const auto run = [&](Ops& ops, auto v, std::span<float> to, View dprediction) {
            ops.flow_loss({.prediction = v(prediction),
                           .target = v(target),
                           .weight = kind == LossKind::kHuber ? ConstView(v(weight)) : ConstView(),
                           .kind = kind,
                           .gradient_weight = factors,
                           .loss = to,
                           .dprediction = dprediction});
          };
          run(
              cpu_ops(), [](const Twin& twin) { return twin.cpu; }, expected, d.cpu);
          on_gpu([&](Ops& ops) {
            const auto cuda = [](const Twin& twin) { return twin.cuda; };
            run(ops, cuda, loss, d.cuda);
            run(ops, cuda, alone, {});
          });
          // Differences and their functions are float32 in both, sums float64: roundings of 6e-8 in each term, which
          // for weights of both signs count against a sum that is smaller than its terms.
          for (std::size_t b = 0; b < 2; ++b) {
            CHECK(std::fabs(loss[b] - expected[b]) <=
                  (kind == LossKind::kHuber ? 2e-5F : 2e-7F) * std::fabs(expected[b]));
          }
          CHECK(alone == loss);
          CHECK(d.error() <= rounded_once(in));
        }
      }
    }
  }
}

TEST_CASE("CUDA sum_of_squares is exact to float64, and repeats bit for bit") {
  if (!gpu()) return;
  for (const std::int64_t n : {1, 70001, 1 << 20}) {
    for (const DType dtype : {DType::F32, DType::BF16}) {
      const Twin x(1, 1, n, 1, dtype);
      const double expected = cpu_ops().sum_of_squares(x.cpu);
      double sum = 0.0, again = 0.0;
      on_gpu([&](Ops& ops) { sum = ops.sum_of_squares(x.cuda); });
      on_gpu([&](Ops& ops) { again = ops.sum_of_squares(x.cuda); });
      CHECK(std::fabs(sum - expected) <= 1e-13 * expected);
      CHECK(sum == again);
    }
  }
  const Twin slice(2, 3, 4, 1, DType::F32, 2);
  CHECK_THROWS_AS(gpu()->ops().sum_of_squares(slice.cuda), std::logic_error);
}

}  // namespace squareq::test
