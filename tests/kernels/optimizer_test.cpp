#include <memory>

#include "kernels/ops.h"
#include "tests/catch.h"
#include "tests/kernels/tensor.h"

namespace squareq::test {

TEST_CASE("adamw agrees with a float64 reference over many steps") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  const std::int64_t n = 20011;
  const Tensor w(1, 1, n, 1), mean(1, 1, n, 2), variance(1, 1, n, 3);
  ops->fill(mean, 0.0F);
  ops->fill(variance, 0.0F);
  const double rate = static_cast<double>(1e-3F), beta1 = static_cast<double>(0.9F), beta2 = static_cast<double>(0.99F);
  const double epsilon = static_cast<double>(1e-6F), decay = static_cast<double>(0.1F);
  Doubles reference = doubles(w), m(index(n)), v(index(n));
  for (std::int64_t step = 1; step <= 8; ++step) {
    const Tensor gradients(1, 1, n, 10 + static_cast<std::uint32_t>(step));
    ops->adamw({.parameters = w,
                .gradients = gradients,
                .mean = mean,
                .variance = variance,
                .gradient_scale = 0.25F,
                .learning_rate = 1e-3F,
                .beta1 = 0.9F,
                .beta2 = 0.99F,
                .epsilon = 1e-6F,
                .weight_decay = 0.1F,
                .step = step});
    const Doubles g = doubles(gradients);
    const auto power = static_cast<double>(step);
    for (std::size_t i = 0; i < g.size(); ++i) {
      m[i] = beta1 * m[i] + (1.0 - beta1) * 0.25 * g[i];
      v[i] = beta2 * v[i] + (1.0 - beta2) * 0.0625 * g[i] * g[i];
      const double m_hat = m[i] / (1.0 - std::pow(beta1, power));
      const double v_hat = v[i] / (1.0 - std::pow(beta2, power));
      reference[i] -= rate * (decay * reference[i] + m_hat / (std::sqrt(v_hat) + epsilon));
    }
  }
  CHECK(error(w, reference) <= 1e-6);
  CHECK(error(mean, m) <= 1e-6);
  CHECK(error(variance, v) <= 1e-6);
}

TEST_CASE("adamw refuses a step before the first") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(1);
  const Tensor w(1, 1, 3);
  CHECK_THROWS_AS(ops->adamw({.parameters = w, .gradients = w, .mean = w, .variance = w, .step = 0}), std::logic_error);
}

}  // namespace squareq::test
