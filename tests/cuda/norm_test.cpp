#include <array>

#include "tests/cuda/both.h"

namespace squareq::test {
namespace {

struct Shape {
  std::int64_t batch, rows, cols, pad;
};

// Odd sizes; wide accesses in whole tensors and in slices; slices that forbid them; rows that fill the registers of 32
// to 512 threads, and rows too long for them.
constexpr std::array<Shape, 9> kShapes{{{2, 3, 17, 0},
                                        {1, 3, 8192, 0},
                                        {1, 5, 3072, 16},
                                        {2, 3, 64, 6},
                                        {3, 2, 8, 0},
                                        {2, 150, 768, 0},
                                        {1, 2, 16384, 0},
                                        {1, 2, 16392, 0},
                                        {1, 2, 20001, 2}}};
constexpr std::array<DType, 2> kTypes{DType::BF16, DType::F32};

}  // namespace

TEST_CASE("CUDA modulated_norm computes what the CPU does") {
  if (!gpu()) return;
  for (const auto& [batch, rows, cols, pad] : kShapes) {
    for (const DType in : kTypes) {
      for (const DType out : kTypes) {
        const Twin x(batch, rows, cols, 1, in, pad, 2.0F);
        const Twin scale(batch, 1, cols, 2, DType::F32, pad), shift(batch, 1, cols, 3, DType::F32, pad);
        Twin y(batch, rows, cols, 4, out, pad);
        both([&](Ops& ops, auto v) {
          ops.modulated_norm({.x = v(x), .scale = v(scale), .shift = v(shift), .y = v(y)});
        });
        CHECK(y.error() <= rounded_once(out));
      }
    }
  }
}

TEST_CASE("CUDA modulated_norm_backward computes what the CPU does") {
  if (!gpu()) return;
  for (const auto& [batch, rows, cols, pad] : kShapes) {
    for (const DType in : kTypes) {
      for (const DType out : kTypes) {
        for (const Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes}) {
          const Twin x(batch, rows, cols, 1, in, pad, 2.0F), dy(batch, rows, cols, 2, out, pad);
          const Twin scale(batch, 1, cols, 3, DType::F32, pad);
          Twin dx(batch, rows, cols, 4, out, pad);
          Twin dscale(batch, 1, cols, 5, DType::F32, pad), dshift(batch, 1, cols, 6, DType::F32, pad);
          both([&](Ops& ops, auto v) {
            ops.modulated_norm_backward({.dy = v(dy),
                                         .x = v(x),
                                         .scale = v(scale),
                                         .dx = v(dx),
                                         .accumulate = accumulate,
                                         .dscale = v(dscale),
                                         .dshift = v(dshift)});
          });
          CHECK(dx.error() <= rounded_once(out));
          CHECK(dscale.error() <= rounded_once(DType::F32));
          CHECK(dshift.error() <= rounded_once(DType::F32));
        }
      }
    }
  }
}

TEST_CASE("CUDA modulated_norm_backward leaves out what is not wanted, and repeats bit for bit") {
  if (!gpu()) return;
  const std::int64_t rows = 300, cols = 264;
  const Twin x(2, rows, cols, 1), dy(2, rows, cols, 2), scale(2, 1, cols, 3, DType::F32);
  const Twin dx(2, rows, cols, 4), dscale(2, 1, cols, 5, DType::F32), dshift(2, 1, cols, 6, DType::F32);
  const Twin dx1(2, rows, cols, 4), dscale1(2, 1, cols, 5, DType::F32), dshift1(2, 1, cols, 6, DType::F32);
  on_gpu([&](Ops& ops) {
    ops.modulated_norm_backward(
        {.dy = dy.cuda, .x = x.cuda, .scale = scale.cuda, .dx = dx.cuda, .dscale = dscale.cuda, .dshift = dshift.cuda});
  });
  on_gpu([&](Ops& ops) {
    ops.modulated_norm_backward({.dy = dy.cuda, .x = x.cuda, .scale = scale.cuda, .dx = dx1.cuda});
    ops.modulated_norm_backward({.dy = dy.cuda, .x = x.cuda, .scale = scale.cuda, .dscale = dscale1.cuda});
    ops.modulated_norm_backward({.dy = dy.cuda, .x = x.cuda, .scale = scale.cuda, .dshift = dshift1.cuda});
  });
  CHECK(bytes_of(dx.cuda) == bytes_of(dx1.cuda));
  CHECK(bytes_of(dscale.cuda) == bytes_of(dscale1.cuda));
  CHECK(bytes_of(dshift.cuda) == bytes_of(dshift1.cuda));
}

TEST_CASE("CUDA layer_norm and rms_norm compute what the CPU does, with gains of any floating type") {
  if (!gpu()) return;
  for (const auto& [batch, rows, cols, pad] : kShapes) {
    for (const DType weights : {DType::F32, DType::BF16, DType::F16}) {
      for (const DType out : kTypes) {
        const Twin x(batch, rows, cols, 1, DType::BF16, pad, 2.0F);
        const Twin gain(1, 1, cols, 2, weights), bias(1, 1, cols, 3, weights);
        Twin y(batch, rows, cols, 4, out, pad), z(batch, rows, cols, 5, out, pad);
        both([&](Ops& ops, auto v) {
          ops.layer_norm(v(x), v(gain), v(bias), 1e-5F, v(y));
          ops.rms_norm(v(x), v(gain), 1e-6F, v(z));
        });
        CHECK(y.error() <= rounded_once(out));
        CHECK(z.error() <= rounded_once(out));
      }
    }
  }
}

TEST_CASE("CUDA norms find a small variance beside a large mean") {
  if (!gpu()) return;
  Twin x(1, 4, 3072, 1, DType::F32), y(1, 4, 3072, 2, DType::F32);
  const Twin gain(1, 1, 3072, 3, DType::F32), bias(1, 1, 3072, 4, DType::F32);
  both([&](Ops& ops, auto v) {
    ops.fill(v(y), 100.0F);
    ops.copy(v(y), v(x), Accumulate::kYes);
    ops.layer_norm(v(x), v(gain), v(bias), 1e-6F, v(y));
  });
  // The mean of values near 100 is good to some 10^-7 of it: 10^-5 of the deviations of 1.
  CHECK(y.error() <= 3e-5);
}

TEST_CASE("CUDA norms refuse shapes that do not fit") {
  if (!gpu()) return;
  const Twin x(2, 3, 16, 1), y(2, 3, 16, 2), scale(2, 1, 16, 3, DType::F32), gain(1, 1, 8, 4), bad(1, 1, 16, 5);
  Ops& ops = gpu()->ops();
  CHECK_THROWS_AS(ops.modulated_norm({.x = x.cuda, .scale = bad.cuda, .shift = scale.cuda, .y = y.cuda}),
                  std::logic_error);
  CHECK_THROWS_AS(ops.rms_norm(x.cuda, gain.cuda, 1e-6F, y.cuda), std::logic_error);
  CHECK_THROWS_AS(ops.layer_norm(x.cuda, bad.cuda, gain.cuda, 1e-6F, y.cuda), std::logic_error);
}

}  // namespace squareq::test
