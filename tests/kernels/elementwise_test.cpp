#include <array>
#include <limits>
#include <memory>

#include "kernels/base/error.h"
#include "kernels/cpu/activation_math.h"
#include "kernels/ops.h"
#include "tests/catch.h"
#include "tests/kernels/tensor.h"

namespace squareq::test {
namespace {

double formula(Activation f, double x) {
  switch (f) {
    case Activation::kSilu: return x / (1.0 + std::exp(-x));
    case Activation::kGeluTanh: return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kQuickGelu: return x / (1.0 + std::exp(-1.702 * x));
  }
  return std::numeric_limits<double>::quiet_NaN();
}

constexpr std::array<Activation, 3> kActivations{Activation::kSilu, Activation::kGeluTanh, Activation::kQuickGelu};

Doubles apply(Activation f, Doubles x) {
  for (double& value : x) value = formula(f, value);
  return x;
}

Doubles times(Doubles a, const Doubles& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] *= b.at(i);
  return a;
}

}  // namespace

TEST_CASE("activations and their backwards agree with the formulae and with central differences") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  for (const Activation f : kActivations) {
    for (const Memory memory : {Memory::kContiguous, Memory::kSlice}) {
      Tensor x(2, 3, 37, 1, memory, 3.0F), factor(2, 3, 37, 2, memory), y(2, 3, 37, 3, memory);
      Tensor dy(2, 3, 37, 4, memory), dx(2, 3, 37, 5, memory);
      const Doubles xs = doubles(x);
      ops->activation(f, x, {}, y);
      CHECK(error(y, apply(f, xs)) <= kForwardTolerance);
      ops->activation(f, x, factor, y);
      CHECK(error(y, times(apply(f, xs), doubles(factor))) <= kForwardTolerance);

      const Doubles gradient = numeric_gradient(xs, doubles(dy), [&](const Doubles& at) { return apply(f, at); });
      const Doubles before = doubles(dx);
      ops->activation_backward(f, dy, x, dx, Accumulate::kYes);
      CHECK(error(dx, plus(before, gradient)) <= kGradientTolerance);
      ops->activation_backward(f, dy, x, dx, Accumulate::kNo);
      CHECK(error(dx, gradient) <= kGradientTolerance);
      ops->activation_backward(f, dy, x, dy, Accumulate::kNo);
      CHECK(floats(dy) == floats(dx));
      ops->activation(f, x, {}, y);
      ops->activation(f, x, {}, x);
      CHECK(floats(x) == floats(y));
      for (Tensor* t : {&x, &y, &dx, &dy}) CHECK(t->surroundings_kept());
    }
  }
}

TEST_CASE("activations stay finite and right far from zero") {
  for (const float x : {-1e4F, -200.0F, -90.0F, -40.0F, 40.0F, 90.0F, 200.0F, 1e4F}) {
    const float one = x > 0.0F ? 1.0F : 0.0F;
    CHECK(std::fabs(gelu_tanh(x) - one * x) <= 1e-30F);
    CHECK(std::fabs(gelu_tanh_derivative(x) - one) <= 1e-6F);
    CHECK(std::fabs(swish(1.0F, x) - one * x) <= 1e-14F);
    CHECK(std::fabs(swish_derivative(1.0F, x) - one) <= 1e-6F);
  }
}

TEST_CASE("fast_exp is accurate to 2 units in the last place, and right at its ends") {
  double worst = 0.0;
  for (float x = -87.0F; x < 88.7F; x += 1.3e-4F) {
    const double exact = std::exp(static_cast<double>(x));
    worst = std::fmax(worst, std::fabs(static_cast<double>(fast_exp(x)) - exact) / exact);
  }
  CHECK(worst <= 2.0 * 0x1p-23);
  for (const float x : {-88.0F, -95.0F, -103.0F}) {  // subnormal results
    CHECK(std::fabs(static_cast<double>(fast_exp(x)) - std::exp(static_cast<double>(x))) <= 0x1p-148);
  }
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  CHECK(fast_exp(0.0F) == 1.0F);
  CHECK(fast_exp(-kInfinity) == 0.0F);
  CHECK(fast_exp(-1000.0F) == 0.0F);
  CHECK(fast_exp(88.8F) == kInfinity);
  CHECK(fast_exp(kInfinity) == kInfinity);
  CHECK(std::isnan(fast_exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE("gate_backward agrees with central differences") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  for (const Memory memory : {Memory::kContiguous, Memory::kSlice}) {
    Tensor gate(2, 1, 67, 1, memory), y(2, 3, 67, 2, memory), dsum(2, 3, 67, 3, memory);
    Tensor dy(2, 3, 67, 4, memory), dgate(2, 1, 67, 5, memory), dy_alone(2, 3, 67, 6, memory);
    const auto gated = [&](const Doubles& gates, const Doubles& ys) {
      Doubles result;
      for (std::size_t i = 0; i < ys.size(); ++i) result.push_back(ys[i] * gates[i / (3 * 67) * 67 + i % 67]);
      return result;
    };
    ops->gate_backward(dsum, gate, y, dy, dgate);
    CHECK(error(dy, numeric_gradient(doubles(y), doubles(dsum), [&](const Doubles& at) {
                  return gated(doubles(gate), at);
                })) <= kGradientTolerance);
    CHECK(error(dgate, numeric_gradient(doubles(gate), doubles(dsum), [&](const Doubles& at) {
                  return gated(at, doubles(y));
                })) <= kGradientTolerance);
    ops->gate_backward(dsum, gate, {}, dy_alone, {});
    CHECK(floats(dy) == floats(dy_alone));
    for (Tensor* t : {&dy, &dgate, &gate}) CHECK(t->surroundings_kept());
  }
}

TEST_CASE("gather takes rows of a table of any floating type") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  const std::vector<float> values = floats(Tensor(1, 5, 9, 1));
  const std::vector<std::int32_t> ids{4, 0, 0, 3, 1, 2};
  for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
    std::vector<std::byte> stored(values.size() * size_of(dtype));
    std::vector<float> worth(values.size());
    from_f32(values.data(), dtype, stored.data(), 45);
    to_f32(stored.data(), dtype, worth.data(), 45);
    const ConstView table(stored.data(), dtype, 1, 5, 9);
    const Tensor y(2, 3, 9, 2, Memory::kSlice);
    ops->gather(table, ids, y);
    std::vector<float> expected;
    for (const std::int32_t id : ids) {
      expected.insert(expected.end(), worth.begin() + id * 9, worth.begin() + (id + 1) * 9);
    }
    CHECK(floats(y) == expected);
    for (const std::int32_t wrong : {-1, 5}) {
      std::vector<std::int32_t> bad = ids;
      bad[3] = wrong;
      const std::string message = message_of<FormatError>([&] { ops->gather(table, bad, y); });
      CHECK(contains(message, "id " + std::to_string(wrong)));
    }
  }
}

TEST_CASE("sinusoid gives the time embedding's golden values") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  const std::array<float, 3> sigmas{1.0F, 0.5F, 3.5F};
  const Tensor y(3, 1, 256, 1, Memory::kSlice);
  ops->sinusoid(sigmas, y);
  constexpr std::array<std::array<double, 8>, 3> kGolden{
      {{0.562379, 0.789615, -0.839072, 0.994232, 0.826880, 0.613603, -0.544021, 0.107254},
       {-0.883849, 0.945943, 0.283662, 0.998557, -0.467772, 0.324334, -0.958924, 0.053705},
       {0.964887, -0.675290, -0.903692, 0.930099, 0.262666, 0.737552, -0.428183, 0.367308}}};
  for (std::int64_t b = 0; b < 3; ++b) {
    std::size_t n = 0;
    for (const std::int64_t j : {0, 1, 64, 127, 128, 129, 192, 255}) {
      CHECK(std::fabs(static_cast<double>(y.view().f32(b)[j]) - kGolden[index(b)][n++]) <= 6e-7);
    }
  }
}

TEST_CASE("copy, fill and transpose move elements between any strides") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  for (const Memory memory : {Memory::kContiguous, Memory::kSlice}) {
    Tensor x(2, 41, 67, 1, memory), y(2, 41, 67, 2, memory), turned(2, 67, 41, 3, memory);
    const Doubles before = doubles(y);
    ops->copy(x, y, Accumulate::kYes);
    CHECK(error(y, plus(before, doubles(x))) <= 1e-7);
    ops->copy(x, y, Accumulate::kNo);
    CHECK(floats(y) == floats(x));
    ops->transpose(x, turned);
    for (std::int64_t b = 0; b < 2; ++b) {
      for (std::int64_t r = 0; r < 41; ++r) {
        for (std::int64_t c = 0; c < 67; ++c) REQUIRE(turned.view().f32(b, c)[r] == x.view().f32(b, r)[c]);
      }
    }
    ops->fill(y, 2.5F);
    CHECK(floats(y) == std::vector<float>(2 * 41 * 67, 2.5F));
    for (Tensor* t : {&x, &y, &turned}) CHECK(t->surroundings_kept());
  }
  const Tensor x(2, 3, 4), y(2, 3, 5);
  CHECK_THROWS_AS(ops->copy(x, y, Accumulate::kNo), std::logic_error);
  CHECK_THROWS_AS(ops->transpose(x, y), std::logic_error);
}

TEST_CASE("long vectors are covered whole, with the same bits for any number of threads") {
  const std::unique_ptr<Ops> one = make_cpu_ops(1);
  const std::unique_ptr<Ops> three = make_cpu_ops(3);
  const Tensor x(1, 1, 70001, 1), y(1, 1, 70001, 2), z(1, 1, 70001, 3), dgate(2, 1, 130, 4), dgate3(2, 1, 130, 5);
  const Tensor dsum(2, 200, 130, 6), gate(2, 1, 130, 7), v(2, 200, 130, 8), dv(2, 200, 130, 9);
  one->activation(Activation::kGeluTanh, x, {}, y);
  three->activation(Activation::kGeluTanh, x, {}, z);
  CHECK(error(y, apply(Activation::kGeluTanh, doubles(x))) <= kForwardTolerance);
  CHECK(floats(y) == floats(z));
  one->gate_backward(dsum, gate, v, dv, dgate);
  three->gate_backward(dsum, gate, v, dv, dgate3);
  CHECK(floats(dgate) == floats(dgate3));
}

}  // namespace squareq::test
