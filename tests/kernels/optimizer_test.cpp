#include <algorithm>
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

namespace {

// AdamW with 8-bit moments on n values.
struct Codes {
  explicit Codes(std::int64_t n)
      : w(1, 1, n, 1), mean(index(n)), root(index(n)), mean_scale(blocks(n)), root_scale(blocks(n)) {}

  static std::size_t blocks(std::int64_t n) { return index((n + kMomentBlock - 1) / kMomentBlock); }
  template <class T>
  static View view(std::vector<T>& v, DType dtype) {
    return View(reinterpret_cast<std::byte*>(v.data()), dtype, 1, 1, static_cast<std::int64_t>(v.size()));
  }
  void step(Ops& ops, const Tensor& gradients, std::int64_t number) {
    ops.adamw({.parameters = w,
               .gradients = gradients,
               .mean = view(mean, DType::I8),
               .variance = view(root, DType::U8),
               .mean_scale = view(mean_scale, DType::F32),
               .variance_scale = view(root_scale, DType::F32),
               .learning_rate = 1e-3F,
               .beta2 = 0.99F,
               .weight_decay = 0.0F,
               .step = number});
  }
  double m(std::size_t i) const {
    const double x = mean[i] / 127.0;
    return static_cast<double>(mean_scale[i / 256]) * x * std::fabs(x);
  }
  double v(std::size_t i) const {
    const double x = root[i] / 255.0;
    return std::pow(static_cast<double>(root_scale[i / 256]) * x * x, 2.0);
  }

  Tensor w;
  std::vector<std::int8_t> mean;
  std::vector<std::uint8_t> root;
  std::vector<float> mean_scale, root_scale;
};

}  // namespace

// With constant gradients, m and v approach g and g^2 by steps that for most values are far smaller than a code.
TEST_CASE("8-bit moments follow slow changes on average, whatever the size of a value within its block") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  const std::int64_t n = 64 * 256;
  Codes codes(n);
  const Tensor gradients(1, 1, n, 2);
  const Doubles g = doubles(gradients);
  for (std::int64_t step = 1; step <= 200; ++step) codes.step(*ops, gradients, step);
  const double reached_m = 1.0 - std::pow(0.9, 200.0), reached_v = 1.0 - std::pow(0.99, 200.0);
  double sum_m = 0.0, expected_m = 0.0, sum_v = 0.0, expected_v = 0.0;
  for (std::size_t i = 0; i < g.size(); ++i) {
    if (std::fabs(g[i]) > 0.3) continue;  // about a tenth of the largest of a block
    sum_m += std::fabs(codes.m(i));
    expected_m += reached_m * std::fabs(g[i]);
    sum_v += codes.v(i);
    expected_v += reached_v * g[i] * g[i];
  }
  CHECK(std::fabs(sum_m / expected_m - 1.0) <= 0.02);
  CHECK(std::fabs(sum_v / expected_v - 1.0) <= 0.1);
}

TEST_CASE("8-bit moments lead to nearly the updates of float32 moments") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(3);
  const std::int64_t n = 20011;
  Codes codes(n);
  Tensor w(1, 1, n, 1), mean(1, 1, n), variance(1, 1, n);
  const Doubles start = doubles(w);
  ops->fill(mean, 0.0F);
  ops->fill(variance, 0.0F);
  for (std::int64_t step = 1; step <= 50; ++step) {
    const Tensor gradients(1, 1, n, 10 + static_cast<std::uint32_t>(step));
    codes.step(*ops, gradients, step);
    ops->adamw({.parameters = w,
                .gradients = gradients,
                .mean = mean,
                .variance = variance,
                .learning_rate = 1e-3F,
                .beta2 = 0.99F,
                .weight_decay = 0.0F,
                .step = step});
  }
  const Doubles exact = doubles(w), coded = doubles(codes.w);
  double difference = 0.0, moved = 0.0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    difference += std::pow(coded[i] - exact[i], 2.0);
    moved += std::pow(exact[i] - start[i], 2.0);
  }
  CHECK(std::sqrt(difference / moved) <= 0.05);
}

TEST_CASE("8-bit moments: no second moment vanishes beside a large one, and threads do not matter") {
  Codes one(1000), three(1000);
  const Tensor gradients(1, 1, 1000, 3, Memory::kContiguous, 1e-4F);
  gradients.view().f32()[10] = 1e4F;
  for (std::int64_t step = 1; step <= 3; ++step) {
    one.step(*make_cpu_ops(1), gradients, step);
    three.step(*make_cpu_ops(3), gradients, step);
  }
  CHECK(std::count(one.root.begin(), one.root.end(), 0) == 0);
  CHECK(floats(one.w) == floats(three.w));
  CHECK(one.mean == three.mean);
  CHECK(one.root == three.root);
}

TEST_CASE("lerp moves towards its target") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  Tensor x(2, 3, 50, 1, Memory::kSlice), y(2, 3, 50, 2, Memory::kSlice);
  const Doubles from = doubles(x);
  Doubles expected = doubles(y);
  for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += 0.25 * (from[i] - expected[i]);
  ops->lerp(x, 0.25F, y);
  CHECK(error(y, expected) <= 1e-7);
  CHECK(y.surroundings_kept());
}

}  // namespace squareq::test
