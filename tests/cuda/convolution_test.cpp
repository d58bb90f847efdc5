#include "tests/cuda/harness.h"

namespace squareq::test {
namespace {

struct Case {
  std::int64_t batch = 1, in = 16, out = 16, height = 9, width = 11;
  std::int64_t kernel = 3, stride = 1, before = 1, after = 1, upsample = 1;
  bool residual = false;
  std::int64_t pad = 0;  // of x, residual and y: slices of larger tensors
  DType x = DType::BF16, y = DType::BF16, weight = DType::BF16;

  std::int64_t out_height() const { return (upsample * height + before + after - kernel) / stride + 1; }
  std::int64_t out_width() const { return (upsample * width + before + after - kernel) / stride + 1; }
};

double error(const Case& c) {
  const std::int64_t pixels = c.out_height() * c.out_width();
  Twin x(c.batch, c.height * c.width, c.in, 1, c.x, c.pad), weight(1, c.out, c.in * c.kernel * c.kernel, 2, c.weight);
  Twin bias(1, 1, c.out, 3, c.weight), residual(c.batch, pixels, c.out, 4, c.y, c.pad);
  Twin y(c.batch, pixels, c.out, 5, c.y, c.pad);
  const auto run = [&](Ops& ops, View Twin::*view) {
    ops.convolution({.x = x.*view,
                     .height = c.height,
                     .width = c.width,
                     .weight = weight.*view,
                     .bias = bias.*view,
                     .kernel = c.kernel,
                     .stride = c.stride,
                     .before = c.before,
                     .after = c.after,
                     .upsample = c.upsample,
                     .residual = c.residual ? ConstView(residual.*view) : ConstView{},
                     .y = y.*view});
  };
  run(cpu_ops(), &Twin::cpu);
  on_gpu([&](Ops& ops) { run(ops, &Twin::cuda); });
  return y.error();
}

// Products of bfloat16 numbers are exact in float32, and their sums, here of less than 5000, are off by about 2^-24
// times the square root of that. What remains is the rounding of y.
constexpr double kRounded = 0.58 * kBf16;
constexpr double kExact = 1e-5;

}  // namespace

TEST_CASE("CUDA convolution: kernels, strides, paddings and upsampling") {
  if (gpu() == nullptr) return;
  CHECK(error({}) <= kRounded);
  CHECK(error({.kernel = 1, .before = 0, .after = 0}) <= kRounded);
  CHECK(error({.stride = 2, .before = 0, .after = 1}) <= kRounded);
  CHECK(error({.height = 12, .width = 10, .stride = 2, .before = 0, .after = 1}) <= kRounded);
  CHECK(error({.upsample = 2}) <= kRounded);
  CHECK(error({.upsample = 3}) <= kRounded);
  CHECK(error({.kernel = 5, .stride = 3, .before = 2, .after = 1}) <= kRounded);
  CHECK(error({.height = 1, .width = 1}) <= kRounded);
}

TEST_CASE("CUDA convolution: channels, batches, residual and slices") {
  if (gpu() == nullptr) return;
  for (const std::int64_t in : {3, 16, 64, 96}) {
    for (const std::int64_t out : {3, 5, 16, 136}) {
      for (const std::int64_t pad : {0, 6, 16}) {
        CHECK(error({.batch = 2, .in = in, .out = out, .residual = true, .pad = pad}) <= kRounded);
      }
    }
  }
  CHECK(error({.batch = 2, .in = 128, .out = 320, .height = 33, .width = 47, .residual = true}) <= kRounded);
  CHECK(error({.in = 512, .out = 256, .height = 16, .width = 16, .upsample = 2, .residual = true}) <= kRounded);
}

TEST_CASE("CUDA convolution: types") {
  if (gpu() == nullptr) return;
  CHECK(error({.in = 64, .out = 40, .residual = true, .y = DType::F32}) <= kExact);
  CHECK(error({.in = 64, .out = 3, .residual = true, .y = DType::F32}) <= kExact);
  // x and weights that are not bfloat16 are rounded: with y that makes three independent roundings at most, 1.73 times
  // one.
  CHECK(error({.batch = 2, .in = 3, .out = 128, .x = DType::F32}) <= 1.73 * kRounded);
  CHECK(error({.in = 64, .out = 64, .x = DType::F32, .y = DType::F32, .weight = DType::F32}) <= 1.73 * kRounded);
  CHECK(error({.in = 64, .out = 64, .weight = DType::F16}) <= 1.73 * kRounded);
}

TEST_CASE("CUDA convolution refuses shapes that do not fit") {
  if (gpu() == nullptr) return;
  Twin x(1, 12, 8, 1), weight(1, 8, 72, 2), bias(1, 1, 8, 3), y(1, 12, 8, 4);
  Convolution p{.x = x.cuda, .height = 3, .width = 4, .weight = weight.cuda, .bias = bias.cuda, .y = y.cuda};
  p.height = 4;
  CHECK_THROWS_AS(gpu()->ops().convolution(p), std::logic_error);
  p.height = 3;
  p.after = 0;
  CHECK_THROWS_AS(gpu()->ops().convolution(p), std::logic_error);
}

}  // namespace squareq::test
