#include "kernels/base/error.h"
#include "kernels/ops.h"
#include "tests/cuda/harness.h"

namespace squareq::test {
namespace {

struct Case {
  std::int64_t batch = 2, length = 77, heads = 3, features = 64;
  DType dtype = DType::BF16;
  std::int64_t pad = 0;
  bool causal = false;
  bool bias = false;
  std::vector<std::int64_t> valid_keys;
  std::int64_t masked_end = 0;
};

// The probabilities, the gradient of the scores, o and the gradients are rounded to bfloat16 once on their way, and so
// is the o of delta; the sums between are float32. Independent roundings of uniform error u have a relative L2 norm of
// 0.58 u each: sqrt(2) * 0.58 u for o and dv, sqrt(3) * 0.58 u at most for dq and dk (where p * (dp - delta) cancels,
// the error of delta is that of o times |do|, no more than the scores' own spread).
constexpr double kRoundings = 1.0 * kBf16;
// Float32 inputs are rounded too: two each of the scores, of dp and of the other product.
constexpr double kInputRoundings = 2.0 * kBf16;
// Scores are sums of exact products in float32, exponentials have a relative error of 2^-22.
constexpr double kFloat = 1e-5;

struct Problem {
  explicit Problem(Case c)
      : shape(std::move(c)),
        q(make(1)),
        k(make(2)),
        v(make(3)),
        o(make(4)),
        d_o(make(5)),
        dq(make(6)),
        dk(make(7)),
        dv(make(8)),
        bias(shape.heads, shape.length, shape.length, 9, DType::F32, shape.pad),
        log_sum_exp(shape.batch, shape.heads, shape.length, 10, DType::F32, shape.pad) {}

  Twin make(std::uint32_t stream) const {
    return {shape.batch, shape.length, shape.heads * shape.features, stream, shape.dtype, shape.pad};
  }

  // `side` says which memory of a twin.
  Attention forward(View Twin::*side) const {
    return {.q = q.*side,
            .k = k.*side,
            .v = v.*side,
            .heads = shape.heads,
            .scale = scale(),
            .causal = shape.causal,
            .bias = shape.bias ? ConstView(bias.*side) : ConstView{},
            .valid_keys = shape.valid_keys,
            .masked_end = shape.masked_end,
            .o = o.*side,
            .log_sum_exp = log_sum_exp.*side};
  }
  AttentionBackward backward(View Twin::*side) const {
    return {.d_o = d_o.*side,
            .q = q.*side,
            .k = k.*side,
            .v = v.*side,
            .o = o.*side,
            .log_sum_exp = log_sum_exp.*side,
            .heads = shape.heads,
            .scale = scale(),
            .causal = shape.causal,
            .valid_keys = shape.valid_keys,
            .masked_end = shape.masked_end,
            .dq = dq.*side,
            .dk = dk.*side,
            .dv = dv.*side};
  }
  float scale() const { return 1.0F / std::sqrt(static_cast<float>(shape.features)); }

  double bound() const { return shape.dtype == DType::F32 ? kInputRoundings : kRoundings; }

  void check_forward() {
    cpu_ops().attention(forward(&Twin::cpu));
    on_gpu([&](Ops& ops) { ops.attention(forward(&Twin::cuda)); });
    CHECK(o.error() <= bound());
    CHECK(log_sum_exp.error() <= (shape.dtype == DType::F32 ? kBf16 : kFloat));
  }
  void check_backward() {
    cpu_ops().attention_backward(backward(&Twin::cpu));
    on_gpu([&](Ops& ops) { ops.attention_backward(backward(&Twin::cuda)); });
    CHECK(dv.error() <= bound());
    if (shape.length == 1) return;  // the others are zero but for what rounding left
    CHECK(dq.error() <= bound());
    CHECK(dk.error() <= bound());
  }

  Case shape;
  Twin q, k, v, o, d_o, dq, dk, dv, bias, log_sum_exp;
};

std::string name(const Case& c) {
  return "length " + std::to_string(c.length) + ", features " + std::to_string(c.features) + ", pad " +
         std::to_string(c.pad) + (c.causal ? ", causal" : "") + (c.bias ? ", bias" : "") +
         (c.valid_keys.empty() ? "" : ", mask") + ", type " + std::string(name_of(c.dtype));
}

void check(const Case& c) {
  INFO(name(c));
  Problem p(c);
  p.check_forward();
  if (!c.bias && c.features <= 128) p.check_backward();
}

std::vector<std::byte> bytes(const View& v) {
  std::vector<std::byte> values(v.bytes());
  gpu()->download(v, values.data());
  return values;
}

}  // namespace

TEST_CASE("attention and its backward agree with the CPU for every head size and length") {
  if (!gpu()) return;
  for (const std::int64_t features : {6, 16, 32, 48, 64, 80, 128}) {
    for (const std::int64_t length : {1, 7, 77, 200, 513}) check({.length = length, .features = features});
  }
  for (const std::int64_t length : {1, 33, 200}) check({.batch = 1, .length = length, .heads = 2, .features = 512});
  check({.batch = 1, .length = 130, .heads = 2, .features = 200});
}

TEST_CASE("attention over the whole of FLUX's smallest images agrees with the CPU") {
  if (!gpu()) return;
  check({.batch = 1, .length = 1536, .heads = 2, .features = 128});
}

TEST_CASE("causal attention and its backward agree with the CPU") {
  if (!gpu()) return;
  for (const std::int64_t features : {6, 32, 64, 128}) {
    for (const std::int64_t length : {7, 77, 200, 513}) {
      check({.length = length, .features = features, .causal = true});
    }
  }
  check({.batch = 1, .length = 70, .heads = 1, .features = 512, .causal = true});
}

TEST_CASE("attention with keys that nobody sees and its backward agree with the CPU") {
  if (!gpu()) return;
  for (const std::int64_t features : {32, 64, 128}) {
    check({.length = 200, .features = features, .valid_keys = {3, 0}, .masked_end = 5});
    check({.length = 513, .features = features, .valid_keys = {60, 0}, .masked_end = 256});
    check({.length = 513, .features = features, .valid_keys = {511, 65}, .masked_end = 512});
    check({.length = 300, .features = features, .valid_keys = {300, 250}, .masked_end = 250});
    check({.length = 300, .features = features, .valid_keys = {1, 70}, .masked_end = 300});
    check({.length = 300, .features = features, .causal = true, .valid_keys = {1, 70}, .masked_end = 200});
  }
  check({.length = 100, .heads = 1, .features = 512, .valid_keys = {3, 17}, .masked_end = 64});
}

TEST_CASE("attention adds a bias to the scores as the CPU does") {
  if (!gpu()) return;
  for (const std::int64_t features : {6, 64, 128}) {
    for (const std::int64_t length : {7, 77, 300}) {
      check({.length = length, .features = features, .bias = true});
      check({.length = length, .features = features, .pad = 3, .bias = true, .valid_keys = {5, 7}, .masked_end = 7});
    }
  }
}

TEST_CASE("attention takes slices and float32 views") {
  if (!gpu()) return;
  for (const std::int64_t pad : {16, 3}) {
    for (const std::int64_t features : {6, 64, 128}) {
      check({.length = 130, .features = features, .pad = pad});
      check({.length = 130, .features = features, .dtype = DType::F32, .pad = pad, .causal = true});
    }
  }
}

TEST_CASE("attention takes more samples than one launch") {
  if (!gpu()) return;
  std::vector<std::int64_t> valid_keys(67, 5);
  valid_keys[65] = 9;
  check({.batch = 67, .length = 20, .heads = 1, .features = 32, .valid_keys = valid_keys, .masked_end = 12});
}

TEST_CASE("large scores neither overflow on the GPU nor lose the row sum") {
  if (!gpu()) return;
  Problem p({.length = 200, .features = 128});
  for (int i = 0; i < 5; ++i) {
    Attention loud = p.forward(&Twin::cpu);
    loud.scale = static_cast<float>(1 << i);
    cpu_ops().attention(loud);
    Attention on_device = p.forward(&Twin::cuda);
    on_device.scale = loud.scale;
    on_gpu([&](Ops& ops) { ops.attention(on_device); });
    CHECK(p.o.error() <= kRoundings);
    CHECK(p.log_sum_exp.error() <= kFloat);
  }
}

TEST_CASE("the backward of attention on the GPU gives the same bits every time") {
  if (!gpu()) return;
  const Problem p({.batch = 2, .length = 513, .heads = 3, .features = 128});
  on_gpu([&](Ops& ops) { ops.attention(p.forward(&Twin::cuda)); });
  std::vector<std::vector<std::byte>> first;
  for (int run = 0; run < 3; ++run) {
    on_gpu([&](Ops& ops) { ops.attention_backward(p.backward(&Twin::cuda)); });
    std::vector<std::vector<std::byte>> now{bytes(p.dq.cuda), bytes(p.dk.cuda), bytes(p.dv.cuda)};
    if (run == 0) first = now;
    CHECK(now == first);
  }
}

TEST_CASE("attention on the GPU refuses shapes and masks that do not fit") {
  if (!gpu()) return;
  const Problem p({.features = 16});
  Attention bad = p.forward(&Twin::cuda);
  bad.heads = 5;
  CHECK_THROWS_AS(gpu()->ops().attention(bad), std::logic_error);
  bad = p.forward(&Twin::cuda);
  const std::vector<std::int64_t> nothing{0, 3};
  bad.valid_keys = nothing;
  bad.masked_end = 77;
  CHECK_THROWS_AS(gpu()->ops().attention(bad), std::logic_error);
  const Problem wide({.batch = 1, .length = 7, .heads = 1, .features = 130});
  CHECK_THROWS_AS(gpu()->ops().attention_backward(wide.backward(&Twin::cuda)), std::logic_error);
}

}  // namespace squareq::test
