#include <array>

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
        bias(shape.bias ? shape.heads : 1, shape.bias ? shape.length : 1, shape.bias ? shape.length : 1, 9, DType::F32,
             shape.pad),
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

  void check_forward(Device& device) {
    cpu_ops().attention(forward(&Twin::cpu));
    on_device(device, [&](Ops& ops) { ops.attention(forward(&Twin::cuda)); });
    CHECK(o.error() <= bound());
    CHECK(log_sum_exp.error() <= (shape.dtype == DType::F32 ? kBf16 : kFloat));
  }
  void check_backward(Device& device) {
    cpu_ops().attention_backward(backward(&Twin::cpu));
    on_device(device, [&](Ops& ops) { ops.attention_backward(backward(&Twin::cuda)); });
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

Device* open(const DeviceOptions& options, std::unique_ptr<Device>& device) {
  if (!gpu()) return nullptr;
  try {
    if (!device) device = make_cuda_device(options);
  } catch (const ConfigError& e) {
    WARN("SKIPPED: " << e.what());
  }
  return device.get();
}

// Our own kernels; null, after saying so, where there is no GPU.
Device* portable() {
  static std::unique_ptr<Device> device;
  return open({.attention = DeviceOptions::Kernels::kPortable}, device);
}

// cuDNN's; null, after saying so, where there is no GPU or no cuDNN.
Device* cudnn(bool deterministic) {
  static std::array<std::unique_ptr<Device>, 2> devices;
  return open({.attention = DeviceOptions::Kernels::kCudnn, .deterministic = deterministic},
              devices[deterministic ? 1 : 0]);
}

void check(Device& device, const Case& c) {
  INFO(name(c) << " with " << device.choices());
  Problem p(c);
  p.check_forward(device);
  if (!c.bias && c.features <= 128) p.check_backward(device);
}
void check(const Case& c) { check(*portable(), c); }

std::vector<std::byte> bytes(const View& v) {
  std::vector<std::byte> values(v.bytes());
  gpu()->download(v, values.data());
  return values;
}

struct Results {
  std::vector<std::byte> o, dq;
};

Results results(Device& device, const Problem& p) {
  on_device(device, [&](Ops& ops) {
    ops.attention(p.forward(&Twin::cuda));
    ops.attention_backward(p.backward(&Twin::cuda));
  });
  return {bytes(p.o.cuda), bytes(p.dq.cuda)};
}

}  // namespace

TEST_CASE("attention and its backward agree with the CPU for every head size and length") {
  if (!portable()) return;
  for (const std::int64_t features : {6, 16, 32, 48, 64, 80, 128}) {
    for (const std::int64_t length : {1, 7, 77, 200, 513}) check({.length = length, .features = features});
  }
  for (const std::int64_t length : {1, 33, 200}) check({.batch = 1, .length = length, .heads = 2, .features = 512});
  check({.batch = 1, .length = 130, .heads = 2, .features = 200});
}

TEST_CASE("attention over the whole of FLUX's smallest images agrees with the CPU") {
  if (!portable()) return;
  check({.batch = 1, .length = 1536, .heads = 2, .features = 128});
}

TEST_CASE("causal attention and its backward agree with the CPU") {
  if (!portable()) return;
  for (const std::int64_t features : {6, 32, 64, 128}) {
    for (const std::int64_t length : {7, 77, 200, 513}) {
      check({.length = length, .features = features, .causal = true});
    }
  }
  check({.batch = 1, .length = 70, .heads = 1, .features = 512, .causal = true});
}

TEST_CASE("attention with keys that nobody sees and its backward agree with the CPU") {
  if (!portable()) return;
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
  if (!portable()) return;
  for (const std::int64_t features : {6, 64, 128}) {
    for (const std::int64_t length : {7, 77, 300}) {
      check({.length = length, .features = features, .bias = true});
      check({.length = length, .features = features, .pad = 3, .bias = true, .valid_keys = {5, 7}, .masked_end = 7});
    }
  }
}

TEST_CASE("attention takes slices and float32 views") {
  if (!portable()) return;
  for (const std::int64_t pad : {16, 3}) {
    for (const std::int64_t features : {6, 64, 128}) {
      check({.length = 130, .features = features, .pad = pad});
      check({.length = 130, .features = features, .dtype = DType::F32, .pad = pad, .causal = true});
    }
  }
}

TEST_CASE("attention takes more samples than one launch") {
  if (!portable()) return;
  std::vector<std::int64_t> valid_keys(67, 5);
  valid_keys[65] = 9;
  check({.batch = 67, .length = 20, .heads = 1, .features = 32, .valid_keys = valid_keys, .masked_end = 12});
}

TEST_CASE("attention by cuDNN and its backward agree with the CPU") {
  for (const bool deterministic : {true, false}) {
    Device* device = cudnn(deterministic);
    if (!device) return;
    for (const std::int64_t length : {1, 7, 77, 513}) check(*device, {.length = length, .features = 128});
    for (const std::int64_t features : {16, 64, 80}) check(*device, {.length = 200, .features = features});
    check(*device, {.batch = 1, .length = 1536, .heads = 2, .features = 128});
    check(*device, {.batch = 3, .length = 130, .features = 128, .pad = 16});
  }
}

TEST_CASE("what cuDNN does not compute falls to our own kernels") {
  Device* device = cudnn(true);
  if (!device) return;
  check(*device, {.length = 200, .features = 128, .valid_keys = {3, 0}, .masked_end = 5});
  check(*device, {.length = 77, .features = 64, .causal = true});
  check(*device, {.length = 77, .features = 64, .bias = true});
  check(*device, {.length = 130, .features = 128, .pad = 3});
  check(*device, {.length = 130, .features = 64, .dtype = DType::F32});
  check(*device, {.length = 33, .features = 6});
  check(*device, {.batch = 1, .length = 33, .features = 512});
}

TEST_CASE("cuDNN is what the option says: its results are not those of our own kernels") {
  Device* device = cudnn(true);
  if (!device) return;
  const Problem p({.length = 513, .features = 128});
  const Results ours = results(*portable(), p), theirs = results(*device, p);
  CHECK(ours.o != theirs.o);
  CHECK(ours.dq != theirs.dq);
}

TEST_CASE("short attention is left to our own kernels unless cuDNN is asked for") {
  if (!cudnn(true)) return;
  const std::unique_ptr<Device> chosen = make_cuda_device();
  if (chosen->choices().find("cuDNN 9") == std::string::npos) {
    WARN("SKIPPED: " << chosen->choices());
    return;
  }
  for (const std::int64_t length : {511, 512}) {
    const Problem p({.length = length, .features = 128});
    const Results expected = results(length < 512 ? *portable() : *cudnn(true), p), found = results(*chosen, p);
    CHECK(found.o == expected.o);
    CHECK(found.dq == expected.dq);
  }
}

TEST_CASE("the backward of a large batch by cuDNN is that of its samples, in bounded memory") {
  Device* device = cudnn(true);
  if (!device) return;
  const Problem p({.batch = 2, .length = 16384, .heads = 2, .features = 16});
  const AttentionBackward whole = p.backward(&Twin::cuda);
  CHECK(device->ops().scratch_need([&] { device->ops().attention_backward(whole); }) < std::size_t{3} << 29U);
  on_device(*device, [&](Ops& ops) {
    ops.attention(p.forward(&Twin::cuda));
    ops.attention_backward(whole);
  });
  const auto first = bytes(p.dq.cuda);
  AttentionBackward second = whole;
  for (ConstView* v : {&second.d_o, &second.q, &second.k, &second.v, &second.o, &second.log_sum_exp}) {
    *v = v->batch_slice(1, 1);
  }
  for (View* v : {&second.dq, &second.dk, &second.dv}) *v = v->batch_slice(1, 1);
  on_device(*device, [&](Ops& ops) {
    ops.fill(second.dq, 0.0F);
    ops.attention_backward(second);
  });
  CHECK(bytes(p.dq.cuda) == first);
}

TEST_CASE("large scores neither overflow on the GPU nor lose the row sum") {
  if (!portable()) return;
  for (Device* device : {portable(), cudnn(true)}) {
    if (!device) continue;
    Problem p({.length = 200, .features = 128});
    for (int i = 0; i < 5; ++i) {
      Attention loud = p.forward(&Twin::cpu);
      loud.scale = static_cast<float>(1 << i);
      cpu_ops().attention(loud);
      Attention on_gpu = p.forward(&Twin::cuda);
      on_gpu.scale = loud.scale;
      on_device(*device, [&](Ops& ops) { ops.attention(on_gpu); });
      CHECK(p.o.error() <= kRoundings);
      CHECK(p.log_sum_exp.error() <= kFloat);
    }
  }
}

TEST_CASE("the backward of attention on the GPU gives the same bits every time") {
  if (!portable()) return;
  for (Device* device : {portable(), cudnn(true)}) {
    if (!device) continue;
    const Problem p({.batch = 2, .length = 1000, .heads = 3, .features = 128});
    on_device(*device, [&](Ops& ops) { ops.attention(p.forward(&Twin::cuda)); });
    std::vector<std::vector<std::byte>> first;
    for (int run = 0; run < 5; ++run) {
      on_device(*device, [&](Ops& ops) { ops.attention_backward(p.backward(&Twin::cuda)); });
      std::vector<std::vector<std::byte>> now{bytes(p.dq.cuda), bytes(p.dk.cuda), bytes(p.dv.cuda)};
      if (run == 0) first = now;
      CHECK(now == first);
    }
  }
}

TEST_CASE("attention on the GPU refuses shapes and masks that do not fit") {
  if (!portable()) return;
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
