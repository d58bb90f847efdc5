#include <memory>

#include "kernels/ops.h"
#include "tests/catch.h"
#include "tests/kernels/tensor.h"

namespace squareq::test {
namespace {

constexpr double kEpsilon = 1e-6;

struct Shape {
  std::int64_t batch, rows, cols;
};

// (x - mean) / sqrt(var + eps) of every row.
Doubles normalised(const Doubles& x, std::int64_t cols, double epsilon) {
  Doubles y(x.size());
  for (std::size_t begin = 0; begin < x.size(); begin += index(cols)) {
    double mean = 0.0;
    double variance = 0.0;
    for (std::size_t c = begin; c < begin + index(cols); ++c) mean += x[c] / static_cast<double>(cols);
    for (std::size_t c = begin; c < begin + index(cols); ++c) {
      variance += (x[c] - mean) * (x[c] - mean) / static_cast<double>(cols);
    }
    for (std::size_t c = begin; c < begin + index(cols); ++c) y[c] = (x[c] - mean) / std::sqrt(variance + epsilon);
  }
  return y;
}

Doubles modulated(const Shape& s, const Doubles& x, const Doubles& scale, const Doubles& shift) {
  Doubles y = normalised(x, s.cols, kEpsilon);
  for (std::size_t i = 0; i < y.size(); ++i) {
    const std::size_t sample = i / index(s.rows * s.cols);
    const std::size_t c = sample * index(s.cols) + i % index(s.cols);
    y[i] = (1.0 + scale[c]) * y[i] + shift[c];
  }
  return y;
}

}  // namespace

TEST_CASE("modulated_norm and its backward agree with the formula and with central differences") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  for (const Shape s : {Shape{1, 1, 3}, Shape{2, 3, 17}, Shape{3, 2, 70}}) {
    for (const Memory memory : {Memory::kContiguous, Memory::kSlice}) {
      for (const Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes}) {
        Tensor x(s.batch, s.rows, s.cols, 1, memory, 2.0F), dx(s.batch, s.rows, s.cols, 2, memory);
        Tensor y(s.batch, s.rows, s.cols, 3, memory), dy(s.batch, s.rows, s.cols, 4, memory);
        Tensor scale(s.batch, 1, s.cols, 5, memory), shift(s.batch, 1, s.cols, 6, memory);
        Tensor dscale(s.batch, 1, s.cols, 7, memory), dshift(s.batch, 1, s.cols, 8, memory);
        ops->modulated_norm({.x = x, .scale = scale, .shift = shift, .y = y});
        const Doubles xs = doubles(x), scales = doubles(scale), shifts = doubles(shift), cotangent = doubles(dy);
        CHECK(error(y, modulated(s, xs, scales, shifts)) <= kForwardTolerance);

        const Doubles before = accumulate == Accumulate::kYes ? doubles(dx) : Doubles(xs.size());
        ops->modulated_norm_backward(
            {.dy = dy, .x = x, .scale = scale, .dx = dx, .accumulate = accumulate, .dscale = dscale, .dshift = dshift});
        CHECK(error(dx, plus(before, numeric_gradient(xs, cotangent, [&](const Doubles& at) {
                               return modulated(s, at, scales, shifts);
                             }))) <= kGradientTolerance);
        CHECK(error(dscale, numeric_gradient(scales, cotangent, [&](const Doubles& at) {
                      return modulated(s, xs, at, shifts);
                    })) <= kGradientTolerance);
        CHECK(error(dshift, numeric_gradient(shifts, cotangent, [&](const Doubles& at) {
                      return modulated(s, xs, scales, at);
                    })) <= kGradientTolerance);
        for (Tensor* t : {&x, &y, &dx, &dy, &scale, &dscale, &dshift}) CHECK(t->surroundings_kept());
      }
    }
  }
}

TEST_CASE("every gradient of modulated_norm may be left out") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  const Tensor x(2, 3, 17, 1), dy(2, 3, 17, 2), scale(2, 1, 17, 3);
  const Tensor dx(2, 3, 17, 4), dscale(2, 1, 17, 5), dshift(2, 1, 17, 6);
  const Tensor dx_alone(2, 3, 17, 4), dscale_alone(2, 1, 17, 5), dshift_alone(2, 1, 17, 6);
  ops->modulated_norm_backward({.dy = dy, .x = x, .scale = scale, .dx = dx, .dscale = dscale, .dshift = dshift});
  ops->modulated_norm_backward({.dy = dy, .x = x, .scale = scale, .dx = dx_alone});
  ops->modulated_norm_backward({.dy = dy, .x = x, .scale = scale, .dscale = dscale_alone});
  ops->modulated_norm_backward({.dy = dy, .x = x, .scale = scale, .dshift = dshift_alone});
  CHECK(floats(dx) == floats(dx_alone));
  CHECK(floats(dscale) == floats(dscale_alone));
  CHECK(floats(dshift) == floats(dshift_alone));
}

TEST_CASE("layer_norm agrees with the formula") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  const double epsilon = static_cast<double>(1e-5F);
  for (const Memory memory : {Memory::kContiguous, Memory::kSlice}) {
    const Tensor x(2, 5, 37, 1, memory), y(2, 5, 37, 2, memory), gain(1, 1, 37, 3), bias(1, 1, 37, 4);
    ops->layer_norm(x, gain, bias, 1e-5F, y);
    Doubles expected = normalised(doubles(x), 37, epsilon);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      expected[i] = doubles(gain)[i % 37] * expected[i] + doubles(bias)[i % 37];
    }
    CHECK(error(y, expected) <= kForwardTolerance);
  }
}

TEST_CASE("rms_norm agrees with the formula, also with a bfloat16 gain") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  const Tensor x(2, 5, 37, 1, Memory::kSlice), y(2, 5, 37, 2, Memory::kSlice);
  std::vector<std::byte> stored(37 * 2);
  std::vector<float> gain = floats(Tensor(1, 1, 37, 3));
  from_f32(gain.data(), DType::BF16, stored.data(), 37);
  to_f32(stored.data(), DType::BF16, gain.data(), 37);
  ops->rms_norm(x, ConstView(stored.data(), DType::BF16, 1, 1, 37), 1e-6F, y);
  Doubles expected = doubles(x);
  for (std::size_t begin = 0; begin < expected.size(); begin += 37) {
    double squares = 0.0;
    for (std::size_t c = 0; c < 37; ++c) squares += expected[begin + c] * expected[begin + c];
    for (std::size_t c = 0; c < 37; ++c) {
      expected[begin + c] *= static_cast<double>(gain[c]) / std::sqrt(squares / 37.0 + kEpsilon);
    }
  }
  CHECK(error(y, expected) <= kForwardTolerance);
}

TEST_CASE("group_norm agrees with the formula, with and without SiLU") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  for (const bool silu : {false, true}) {
    const Tensor x(2, 35, 6, 1, Memory::kSlice, 3.0F), y(2, 35, 6, 2, Memory::kSlice), gain(1, 1, 6, 3),
        bias(1, 1, 6, 4);
    ops->group_norm({.x = x, .groups = 3, .gain = gain, .bias = bias, .silu = silu, .y = y});
    // Element (b, t, c) stands in row (b, group) of the groups.
    const auto at = [](std::size_t i) {
      const std::size_t b = i / (35 * 6), t = i / 6 % 35, c = i % 6;
      return (b * 3 + c / 2) * 70 + 2 * t + c % 2;
    };
    const Doubles values = doubles(x);
    Doubles groups(values.size()), expected(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) groups[at(i)] = values[i];
    groups = normalised(groups, 70, kEpsilon);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double value = doubles(gain)[i % 6] * groups[at(i)] + doubles(bias)[i % 6];
      expected[i] = silu ? value / (1.0 + std::exp(-value)) : value;
    }
    CHECK(error(y, expected) <= kForwardTolerance);
  }
  const Tensor x(1, 4, 6, 1), y(1, 4, 6, 2), gain(1, 1, 6, 3);
  CHECK_THROWS_AS(ops->group_norm({.x = x, .groups = 4, .gain = gain, .bias = gain, .y = y}), std::logic_error);
}

TEST_CASE("norms give the same bits for any number of threads") {
  const std::unique_ptr<Ops> one = make_cpu_ops(1);
  const std::unique_ptr<Ops> three = make_cpu_ops(3);
  const Tensor x(2, 150, 193, 1), dy(2, 150, 193, 2), scale(2, 1, 193, 3), shift(2, 1, 193, 4), gain(1, 1, 193, 5);
  const auto run = [&](Ops& ops) {
    const Tensor y(2, 150, 193, 6), dx(2, 150, 193, 7), dscale(2, 1, 193, 8), dshift(2, 1, 193, 9), g(2, 150, 193, 10);
    ops.modulated_norm({.x = x, .scale = scale, .shift = shift, .y = y});
    ops.modulated_norm_backward({.dy = dy, .x = x, .scale = scale, .dx = dx, .dscale = dscale, .dshift = dshift});
    ops.group_norm({.x = x, .groups = 1, .gain = gain, .bias = gain, .y = g});
    return std::vector<std::vector<float>>{floats(y), floats(dx), floats(dscale), floats(dshift), floats(g)};
  };
  CHECK(run(*one) == run(*three));
}

}  // namespace squareq::test
