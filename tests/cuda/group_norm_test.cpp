#include "tests/cuda/harness.h"

namespace squareq::test {
namespace {

struct Case {
  std::int64_t batch = 2, pixels = 35, channels = 64, groups = 32;
  bool silu = true;
  std::int64_t pad = 0;
  DType x = DType::BF16, y = DType::BF16;
  float mean = 0.0F;  // added to x
};

double error(const Case& c) {
  Twin x(c.batch, c.pixels, c.channels, 1, c.x, c.pad, 2.0F), y(c.batch, c.pixels, c.channels, 2, c.y, c.pad);
  Twin gain(1, 1, c.channels, 3), bias(1, 1, c.channels, 4, DType::F32);
  if (c.mean != 0.0F) {
    std::vector<float> values(static_cast<std::size_t>(x.cpu.count()));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = x.cpu.f32()[i] += c.mean;
    gpu()->upload(values.data(), x.cuda);
  }
  const auto run = [&](Ops& ops, View Twin::*view) {
    ops.group_norm(
        {.x = x.*view, .groups = c.groups, .gain = gain.*view, .bias = bias.*view, .silu = c.silu, .y = y.*view});
  };
  run(cpu_ops(), &Twin::cpu);
  on_gpu([&](Ops& ops) { run(ops, &Twin::cuda); });
  return y.error();
}

// The rounding of y to bfloat16.
constexpr double kRounded = 0.58 * kBf16;
// In float32: a few roundings of 2^-24, and 2^-22 of the fast exponential.
constexpr double kExact = 2e-6;

}  // namespace

TEST_CASE("CUDA group_norm: sizes and slices") {
  if (gpu() == nullptr) return;
  CHECK(error({}) <= kRounded);
  CHECK(error({.silu = false}) <= kRounded);
  CHECK(error({.channels = 6, .groups = 3}) <= kRounded);
  CHECK(error({.pixels = 1, .channels = 96}) <= kRounded);
  CHECK(error({.pixels = 1000, .channels = 512}) <= kRounded);
  CHECK(error({.pixels = 1031, .channels = 128, .pad = 6}) <= kRounded);
  CHECK(error({.pixels = 257, .channels = 128, .pad = 16}) <= kRounded);
  CHECK(error({.batch = 1, .pixels = 300, .channels = 2500, .groups = 4}) <= kRounded);
}

TEST_CASE("CUDA group_norm: float32") {
  if (gpu() == nullptr) return;
  for (const bool silu : {false, true}) {
    CHECK(error({.pixels = 700, .silu = silu, .x = DType::F32, .y = DType::F32}) <= kExact);
  }
  CHECK(error({.pixels = 700, .y = DType::F32}) <= kExact);
  CHECK(error({.pixels = 700, .x = DType::F32}) <= kRounded);
}

TEST_CASE("CUDA group_norm: a mean far from zero does not cancel the variance") {
  if (gpu() == nullptr) return;
  // Both backends round the mean to float32, half a unit at 4096 being 2^-12, and the CPU also its sums of a channel,
  // to one in 2e7: together 3 * 2^-12, against deviations of 2.
  const double bound = 3.0 * std::ldexp(1.0, -12) / 2.0;
  CHECK(error({.pixels = 5000, .silu = false, .x = DType::F32, .y = DType::F32, .mean = 4096.0F}) <= bound);
}

}  // namespace squareq::test
