#include <array>
#include <memory>

#include "kernels/ops.h"
#include "tests/catch.h"
#include "tests/kernels/tensor.h"

namespace squareq::test {
namespace {

struct Problem {
  Problem(std::int64_t batch, std::int64_t rows, std::int64_t heads, std::int64_t features, Memory memory)
      : d(features),
        x(batch, rows, heads * features, 1, memory, 2.0F),
        y(batch, rows, heads * features, 2, memory),
        dy(batch, rows, heads * features, 3, memory),
        dx(batch, rows, heads * features, 4, memory),
        gain(1, 1, features, 5),
        cosine(1, rows, features / 2, 6, memory),
        sine(1, rows, features / 2, 7, memory) {
    for (std::int64_t t = 0; t < rows; ++t) {
      for (std::int64_t i = 0; i < features / 2; ++i) {
        const double angle = static_cast<double>(sine.view().f32(0, t)[i]);
        cosine.view().f32(0, t)[i] = static_cast<float>(std::cos(angle));
        sine.view().f32(0, t)[i] = static_cast<float>(std::sin(angle));
      }
    }
  }

  Doubles formula(const Doubles& at) const {
    Doubles result(at.size());
    const Doubles g = doubles(gain), cosines = doubles(cosine), sines = doubles(sine);
    for (std::size_t begin = 0; begin < at.size(); begin += index(d)) {
      const std::size_t t = begin / index(x.view().cols) % index(x.view().rows);
      double squares = 0.0;
      for (std::size_t c = 0; c < index(d); ++c) squares += at[begin + c] * at[begin + c];
      const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(d) + 1e-6);
      for (std::size_t p = 0; p < index(d / 2); ++p) {
        const double c = cosines[t * index(d / 2) + p];
        const double s = sines[t * index(d / 2) + p];
        const double even = g[2 * p] * at[begin + 2 * p] * inverse;
        const double odd = g[2 * p + 1] * at[begin + 2 * p + 1] * inverse;
        result[begin + 2 * p] = c * even - s * odd;
        result[begin + 2 * p + 1] = s * even + c * odd;
      }
    }
    return result;
  }

  NormRope forward() const { return {.x = x, .gain = gain, .cosine = cosine, .sine = sine, .y = y}; }
  NormRopeBackward backward(const View& to) const {
    return {.dy = dy, .x = x, .gain = gain, .cosine = cosine, .sine = sine, .dx = to};
  }

  std::int64_t d;
  Tensor x, y, dy, dx, gain, cosine, sine;
};

}  // namespace

TEST_CASE("norm_rope and its backward agree with the formula and with central differences") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  for (const std::int64_t features : {2, 10, 48}) {
    for (const Memory memory : {Memory::kContiguous, Memory::kSlice}) {
      Problem p(2, 3, 3, features, memory);
      ops->norm_rope(p.forward());
      CHECK(error(p.y, p.formula(doubles(p.x))) <= kForwardTolerance);
      ops->norm_rope_backward(p.backward(p.dx));
      CHECK(error(p.dx, numeric_gradient(doubles(p.x), doubles(p.dy),
                                         [&](const Doubles& at) { return p.formula(at); })) <= kGradientTolerance);
      ops->norm_rope_backward(p.backward(p.dy));
      CHECK(floats(p.dy) == floats(p.dx));
      for (Tensor* t : {&p.x, &p.y, &p.dx, &p.dy}) CHECK(t->surroundings_kept());
    }
  }
}

TEST_CASE("norm_rope turns a pair forwards by its angle") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(1);
  std::array<float, 2> x{1.0F, 0.0F}, gain{1.0F, 1.0F}, y{};
  std::array<float, 1> cosine{0.540302F}, sine{0.841471F};  // position 1, frequency 1
  const auto view = [](auto& values) {
    return View(reinterpret_cast<std::byte*>(values.data()), DType::F32, 1, 1,
                static_cast<std::int64_t>(values.size()));
  };
  ops->norm_rope({.x = view(x), .gain = view(gain), .cosine = view(cosine), .sine = view(sine), .y = view(y)});
  const double root = std::sqrt(2.0);  // the norm of (1, 0) makes its mean square 1
  CHECK(std::fabs(static_cast<double>(y[0]) - root * 0.540302) <= 2e-6);
  CHECK(std::fabs(static_cast<double>(y[1]) - root * 0.841471) <= 2e-6);
}

TEST_CASE("norm_rope gives the same bits for any number of threads") {
  const std::unique_ptr<Ops> one = make_cpu_ops(1);
  const std::unique_ptr<Ops> three = make_cpu_ops(3);
  const Problem p(2, 150, 3, 48, Memory::kContiguous), q(2, 150, 3, 48, Memory::kContiguous);
  one->norm_rope(p.forward());
  three->norm_rope(q.forward());
  one->norm_rope_backward(p.backward(p.dx));
  three->norm_rope_backward(q.backward(q.dx));
  CHECK(floats(p.y) == floats(q.y));
  CHECK(floats(p.dx) == floats(q.dx));
}

TEST_CASE("norm_rope refuses shapes that do not fit") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(1);
  const Problem p(2, 3, 3, 10, Memory::kContiguous);
  NormRope bad = p.forward();
  bad.cosine = p.cosine.view().row_slice(0, 2);
  CHECK_THROWS_AS(ops->norm_rope(bad), std::logic_error);
  bad = p.forward();
  bad.gain = p.gain.view().col_slice(0, 8);
  CHECK_THROWS_AS(ops->norm_rope(bad), std::logic_error);
}

}  // namespace squareq::test
