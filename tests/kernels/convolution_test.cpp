#include <memory>

#include "kernels/ops.h"
#include "tests/catch.h"
#include "tests/kernels/tensor.h"

namespace squareq::test {
namespace {

struct Case {
  Memory memory = Memory::kContiguous;
  std::int64_t batch = 2, in = 3, out = 5, height = 6, width = 7;
  std::int64_t kernel = 3, stride = 1, before = 1, after = 1, upsample = 1;
  bool residual = false;
};

struct Problem {
  explicit Problem(const Case& c)
      : shape(c),
        out_height((c.upsample * c.height + c.before + c.after - c.kernel) / c.stride + 1),
        out_width((c.upsample * c.width + c.before + c.after - c.kernel) / c.stride + 1),
        x(c.batch, c.height * c.width, c.in, 1, c.memory),
        weight(1, c.out, c.in * c.kernel * c.kernel, 2, c.memory),
        bias(1, 1, c.out, 3),
        residual(c.batch, out_height * out_width, c.out, 4, c.memory),
        y(c.batch, out_height * out_width, c.out, 5, c.memory) {}

  Convolution forward() const {
    return {.x = x,
            .height = shape.height,
            .width = shape.width,
            .weight = weight,
            .bias = bias,
            .kernel = shape.kernel,
            .stride = shape.stride,
            .before = shape.before,
            .after = shape.after,
            .upsample = shape.upsample,
            .residual = shape.residual ? ConstView(residual) : ConstView{},
            .y = y};
  }

  // One output pixel; the padded, upsampled image is looked up pixel by pixel.
  double pixel(std::int64_t b, std::int64_t o, std::int64_t oy, std::int64_t ox) const {
    const Case& c = shape;
    double sum = static_cast<double>(bias.view().f32()[o]);
    if (c.residual) sum += static_cast<double>(residual.view().f32(b, oy * out_width + ox)[o]);
    for (std::int64_t i = 0; i < c.in; ++i) {
      for (std::int64_t ky = 0; ky < c.kernel; ++ky) {
        for (std::int64_t kx = 0; kx < c.kernel; ++kx) {
          const std::int64_t iy = oy * c.stride + ky - c.before;
          const std::int64_t ix = ox * c.stride + kx - c.before;
          if (iy < 0 || ix < 0 || iy >= c.upsample * c.height || ix >= c.upsample * c.width) continue;
          sum += static_cast<double>(x.view().f32(b, iy / c.upsample * c.width + ix / c.upsample)[i]) *
                 static_cast<double>(weight.view().f32(0, o)[(i * c.kernel + ky) * c.kernel + kx]);
        }
      }
    }
    return sum;
  }

  Doubles formula() const {
    Doubles result;
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      for (std::int64_t i = 0; i < out_height * out_width; ++i) {
        for (std::int64_t o = 0; o < shape.out; ++o) {
          result.push_back(pixel(b, o, i / out_width, i % out_width));
        }
      }
    }
    return result;
  }

  Case shape;
  std::int64_t out_height, out_width;
  Tensor x, weight, bias, residual, y;
};

}  // namespace

TEST_CASE("convolution agrees with the formula") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  for (const Memory memory : {Memory::kContiguous, Memory::kSlice}) {
    for (const Case& c :
         {Case{.memory = memory}, Case{.memory = memory, .residual = true},
          Case{.memory = memory, .kernel = 1, .before = 0, .after = 0},
          Case{.memory = memory, .stride = 2, .before = 0, .after = 1}, Case{.memory = memory, .upsample = 2},
          Case{.memory = memory, .in = 100, .height = 20, .width = 21, .residual = true},
          Case{.memory = memory, .height = 1, .width = 1}}) {
      Problem p(c);
      ops->convolution(p.forward());
      CHECK(error(p.y, p.formula()) <= kForwardTolerance);
      CHECK(p.y.surroundings_kept());
    }
  }
}

TEST_CASE("convolution gives the same bits for any number of threads") {
  const Problem p({.height = 30, .width = 31}), q({.height = 30, .width = 31});
  make_cpu_ops(1)->convolution(p.forward());
  make_cpu_ops(3)->convolution(q.forward());
  CHECK(floats(p.y) == floats(q.y));
}

TEST_CASE("convolution refuses shapes that do not fit") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(1);
  const Problem p({});
  Convolution bad = p.forward();
  bad.height = 5;
  CHECK_THROWS_AS(ops->convolution(bad), std::logic_error);
  bad = p.forward();
  bad.after = 0;
  CHECK_THROWS_AS(ops->convolution(bad), std::logic_error);
  bad = p.forward();
  bad.stride = 0;
  CHECK_THROWS_AS(ops->convolution(bad), std::logic_error);
}

}  // namespace squareq::test
