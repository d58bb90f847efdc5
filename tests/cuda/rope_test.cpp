#include <array>
#include <tuple>

#include "tests/cuda/both.h"

namespace squareq::test {
namespace {

// Cosines and sines need not belong to angles: both backends take any numbers.
struct Problem {
  Problem(std::int64_t batch, std::int64_t rows, std::int64_t heads, std::int64_t d, DType in, DType out,
          std::int64_t pad)
      : x(batch, rows, heads * d, 1, in, pad, 2.0F),
        y(batch, rows, heads * d, 2, out, pad),
        dy(batch, rows, heads * d, 3, out, pad),
        dx(batch, rows, heads * d, 4, out, pad),
        gain(1, 1, d, 5, in),
        cosine(1, rows, d / 2, 6, DType::F32, pad),
        sine(1, rows, d / 2, 7, DType::F32, pad) {}

  Twin x, y, dy, dx, gain, cosine, sine;
};

}  // namespace

TEST_CASE("CUDA norm_rope and its backward compute what the CPU does") {
  if (!gpu()) return;
  // Heads of FLUX, smaller and odder ones, longer ones; whole and as slices with and without alignment.
  const std::array<std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>, 9> shapes{
      {{1, 37, 24, 128, 0},
       {2, 5, 3, 128, 16},
       {2, 5, 3, 128, 6},
       {2, 3, 3, 48, 0},
       {1, 3, 5, 32, 0},
       {2, 3, 3, 10, 0},
       {1, 1, 1, 2, 0},
       {2, 3, 2, 512, 0},
       {1, 7, 3, 256, 16}}};
  for (const auto& [batch, rows, heads, d, pad] : shapes) {
    for (const DType in : {DType::BF16, DType::F32}) {
      for (const DType out : {DType::BF16, DType::F32}) {
        Problem p(batch, rows, heads, d, in, out, pad);
        both([&](Ops& ops, auto v) {
          ops.norm_rope({.x = v(p.x), .gain = v(p.gain), .cosine = v(p.cosine), .sine = v(p.sine), .y = v(p.y)});
          ops.norm_rope_backward(
              {.dy = v(p.dy), .x = v(p.x), .gain = v(p.gain), .cosine = v(p.cosine), .sine = v(p.sine), .dx = v(p.dx)});
        });
        CHECK(p.y.error() <= rounded_once(out));
        // With two features a gradient is what remains of a cancellation: ten times the error of its terms.
        CHECK(p.dx.error() <= (d == 2 ? 10.0 : 1.0) * rounded_once(out));
        both([&](Ops& ops, auto v) {
          ops.norm_rope_backward(
              {.dy = v(p.dy), .x = v(p.x), .gain = v(p.gain), .cosine = v(p.cosine), .sine = v(p.sine), .dx = v(p.dy)});
        });
        CHECK(p.dy.error() <= (d == 2 ? 10.0 : 1.0) * rounded_once(out));
      }
    }
  }
}

TEST_CASE("CUDA norm_rope refuses shapes that do not fit") {
  if (!gpu()) return;
  const Problem p(2, 3, 3, 10, DType::BF16, DType::BF16, 0);
  Ops& ops = gpu()->ops();
  NormRope bad{
      .x = p.x.cuda, .gain = p.gain.cuda, .cosine = p.cosine.cuda.row_slice(0, 2), .sine = p.sine.cuda, .y = p.y.cuda};
  CHECK_THROWS_AS(ops.norm_rope(bad), std::logic_error);
  bad.cosine = p.cosine.cuda;
  bad.gain = p.gain.cuda.col_slice(0, 8);
  CHECK_THROWS_AS(ops.norm_rope(bad), std::logic_error);
}

}  // namespace squareq::test
