#include <array>
#include <string>

#include "kernels/base/error.h"
#include "tests/cuda/both.h"

namespace squareq::test {
namespace {

struct Shape {
  std::int64_t batch, rows, cols, pad;
};

// Odd sizes, wide accesses in whole tensors and in slices, slices that forbid them, long vectors.
constexpr std::array<Shape, 6> kShapes{
    {{2, 3, 37, 0}, {2, 70, 264, 16}, {2, 3, 64, 6}, {1, 1, 70001, 0}, {1, 130, 1536, 0}, {3, 1, 8, 2}}};
constexpr std::array<DType, 2> kTypes{DType::BF16, DType::F32};

}  // namespace

TEST_CASE("CUDA activations and their backwards compute what the CPU does") {
  if (!gpu()) return;
  for (const Activation f : {Activation::kSilu, Activation::kGeluTanh, Activation::kQuickGelu}) {
    for (const auto& [batch, rows, cols, pad] : kShapes) {
      for (const DType in : kTypes) {
        for (const DType out : kTypes) {
          Twin x(batch, rows, cols, 1, in, pad, 3.0F), dy(batch, rows, cols, 2, out, pad);
          const Twin times(batch, rows, cols, 3, out, pad);
          Twin y(batch, rows, cols, 4, out, pad), z(batch, rows, cols, 5, out, pad);
          Twin dx(batch, rows, cols, 6, out, pad), sum(batch, rows, cols, 7, out, pad);
          both([&](Ops& ops, auto v) {
            ops.activation(f, v(x), {}, v(y));
            ops.activation(f, v(x), v(times), v(z));
            ops.activation_backward(f, v(dy), v(x), v(dx), Accumulate::kNo);
            ops.activation_backward(f, v(dy), v(x), v(sum), Accumulate::kYes);
            ops.activation_backward(f, v(dy), v(x), v(dy), Accumulate::kNo);
            ops.activation(f, v(x), {}, v(x));
          });
          for (Twin* result : {&y, &z, &dx, &sum, &dy}) CHECK(result->error() <= rounded_once(out));
          CHECK(x.error() <= rounded_once(in));
        }
      }
    }
  }
}

TEST_CASE("CUDA activations stay finite and right far from zero") {
  if (!gpu()) return;
  for (const Activation f : {Activation::kSilu, Activation::kGeluTanh, Activation::kQuickGelu}) {
    const Twin x(1, 1, 512, 1, DType::F32, 0, 1e4F), dy(1, 1, 512, 2, DType::F32);
    Twin y(1, 1, 512, 3, DType::F32), dx(1, 1, 512, 4, DType::F32);
    both([&](Ops& ops, auto v) {
      ops.activation(f, v(x), {}, v(y));
      ops.activation_backward(f, v(dy), v(x), v(dx), Accumulate::kNo);
    });
    CHECK(y.error() <= rounded_once(DType::F32));
    CHECK(dx.error() <= rounded_once(DType::F32));
  }
}

TEST_CASE("CUDA gate_backward computes what the CPU does, with and without dgate") {
  if (!gpu()) return;
  for (const auto& [batch, rows, cols, pad] : kShapes) {
    for (const DType in : kTypes) {
      for (const DType out : kTypes) {
        const Twin dsum(batch, rows, cols, 1, in, pad), gate(batch, 1, cols, 2, DType::F32, pad);
        const Twin y(batch, rows, cols, 3, out, pad);
        Twin dy(batch, rows, cols, 4, out, pad), alone(batch, rows, cols, 5, out, pad);
        Twin dgate(batch, 1, cols, 6, DType::F32, pad);
        both([&](Ops& ops, auto v) {
          ops.gate_backward(v(dsum), v(gate), v(y), v(dy), v(dgate));
          ops.gate_backward(v(dsum), v(gate), {}, v(alone), {});
        });
        CHECK(dy.error() <= rounded_once(out));
        CHECK(alone.error() <= rounded_once(out));
        CHECK(dgate.error() <= rounded_once(DType::F32));
      }
    }
  }
}

TEST_CASE("CUDA operations are rehearsed without memory, for as much scratch as they take") {
  if (!gpu()) return;
  const std::int64_t rows = 1000;
  const Twin dsum(1, rows, 264, 1), gate(1, 1, 264, 2, DType::F32), dgate(1, 1, 264, 3, DType::F32);
  const Twin dy(1, rows, 264, 4);
  Ops& ops = gpu()->ops();
  const auto need = [&](auto view) {
    return ops.scratch_need([&] { ops.gate_backward(view(dsum), view(gate), view(dsum), view(dy), view(dgate)); });
  };
  const std::size_t bytes = need([](const Twin& t) { return t.cuda; });
  CHECK(bytes > 0);
  CHECK(bytes == need([](const Twin& t) {
          View v = t.cuda;
          v.data = nullptr;
          return v;
        }));
}

TEST_CASE("CUDA gather takes rows of a table of any floating type") {
  if (!gpu()) return;
  const std::vector<std::int32_t> ids{4, 0, 0, 3, 1, 2};
  for (const std::int64_t cols : {9, 64}) {
    for (const DType stored : {DType::F32, DType::F16, DType::BF16}) {
      for (const DType out : kTypes) {
        const Twin table(1, 5, cols, 1, stored);
        Twin y(2, 3, cols, 2, out, 16);
        both([&](Ops& ops, auto v) { ops.gather(v(table), ids, v(y)); });
        // No arithmetic: only a narrower type rounds.
        CHECK(y.error() <= (out == DType::F32 || stored == out ? 0.0 : rounded_once(out)));
        for (const std::int32_t wrong : {-1, 5}) {
          std::vector<std::int32_t> bad = ids;
          bad[3] = wrong;
          const std::string message =
              message_of<FormatError>([&] { on_gpu([&](Ops& ops) { ops.gather(table.cuda, bad, y.cuda); }); });
          CHECK(contains(message, "id " + std::to_string(wrong)));
        }
      }
    }
  }
}

TEST_CASE("CUDA sinusoid computes what the CPU does") {
  if (!gpu()) return;
  const std::array<float, 3> sigmas{1.0F, 0.5F, 3.5F};
  for (const DType out : kTypes) {
    Twin y(3, 1, 256, 1, out, 6);
    both([&](Ops& ops, auto v) { ops.sinusoid(sigmas, v(y)); });
    CHECK(y.error() <= (out == DType::F32 ? 1e-7 : rounded_once(out)));
  }
}

TEST_CASE("CUDA copy, fill and transpose move elements between any strides and types") {
  if (!gpu()) return;
  for (const auto& [batch, rows, cols, pad] : kShapes) {
    for (const DType in : {DType::BF16, DType::F32, DType::F16}) {
      for (const DType out : kTypes) {
        const Twin x(batch, rows, cols, 1, in, pad);
        Twin y(batch, rows, cols, 2, out, pad), sum(batch, rows, cols, 3, out, pad),
            filled(batch, rows, cols, 4, out, pad);
        Twin turned(batch, cols, rows, 5, out, pad);
        both([&](Ops& ops, auto v) {
          ops.copy(v(x), v(y), Accumulate::kNo);
          ops.copy(v(x), v(sum), Accumulate::kYes);
          ops.fill(v(filled), 2.5F);
          if (in != DType::F16) ops.transpose(v(x), v(turned));
        });
        const double bound = out == DType::F32 || in == out ? 0.0 : rounded_once(out);
        CHECK(y.error() <= bound);
        CHECK(sum.error() <= rounded_once(out));
        CHECK(filled.error() == 0.0);
        if (in != DType::F16) CHECK(turned.error() <= bound);
      }
    }
  }
  const Twin x(2, 3, 4, 1), y(2, 3, 5, 2);
  CHECK_THROWS_AS(gpu()->ops().copy(x.cuda, y.cuda, Accumulate::kNo), std::logic_error);
  CHECK_THROWS_AS(gpu()->ops().transpose(x.cuda, y.cuda), std::logic_error);
}

}  // namespace squareq::test
