#include <array>

#include "tests/cuda/both.h"

namespace squareq::test {

TEST_CASE("CUDA squared_error and its gradient compute what the CPU does") {
  if (!gpu()) return;
  const std::array<float, 2> weights{0.3F, -1.7F};
  for (const std::int64_t cols : {19, 64, 4099}) {
    for (const std::int64_t pad : {0, 6, 16}) {
      for (const DType in : {DType::BF16, DType::F32}) {
        const Twin prediction(2, 300, cols, 1, in, pad), target(2, 300, cols, 2, DType::F32, pad);
        Twin d(2, 300, cols, 3, in, pad);
        std::array<float, 2> loss{}, expected{}, alone{};
        cpu_ops().squared_error(prediction.cpu, target.cpu, weights, expected, d.cpu);
        on_gpu([&](Ops& ops) {
          ops.squared_error(prediction.cuda, target.cuda, weights, loss, d.cuda);
          ops.squared_error(prediction.cuda, target.cuda, {}, alone, {});
        });
        // Differences and squares are float32 in both, sums float64: at most one rounding of the result is not shared.
        for (std::size_t b = 0; b < 2; ++b) CHECK(std::fabs(loss[b] - expected[b]) <= 2e-7F * expected[b]);
        CHECK(alone == loss);
        CHECK(d.error() <= rounded_once(in));
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

TEST_CASE("CUDA adamw computes what the CPU does over some steps") {
  if (!gpu()) return;
  for (const std::int64_t n : {20011, 4096}) {
    Twin w(1, 1, n, 1, DType::F32), mean(1, 1, n, 2, DType::F32), variance(1, 1, n, 3, DType::F32);
    both([&](Ops& ops, auto v) {
      ops.fill(v(mean), 0.0F);
      ops.fill(v(variance), 0.0F);
    });
    for (std::int64_t step = 1; step <= 4; ++step) {
      const Twin gradients(1, 1, n, 10 + static_cast<std::uint32_t>(step), DType::F32);
      both([&](Ops& ops, auto v) {
        ops.adamw({.parameters = v(w),
                   .gradients = v(gradients),
                   .mean = v(mean),
                   .variance = v(variance),
                   .gradient_scale = 0.25F,
                   .learning_rate = 1e-3F,
                   .beta1 = 0.9F,
                   .beta2 = 0.99F,
                   .epsilon = 1e-6F,
                   .weight_decay = 0.1F,
                   .step = step});
      });
    }
    // A dozen roundings of 6e-8 each in every value.
    for (Twin* result : {&w, &mean, &variance}) CHECK(result->error() <= 1e-6);
  }
  const Twin w(1, 1, 3, 1, DType::F32);
  CHECK_THROWS_AS(
      gpu()->ops().adamw({.parameters = w.cuda, .gradients = w.cuda, .mean = w.cuda, .variance = w.cuda, .step = 0}),
      std::logic_error);
}

}  // namespace squareq::test
