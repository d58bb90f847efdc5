// The path w8a8 against the CPU's float32 linear on operands that were quantised in plain loops. What is quantised is
// exact in INT8, so both multiply the same numbers; adapters read what was not quantised, so the CPU is given operands
// twice as wide: the quantised ones meet the weight, the others the adapters.
#include "tests/cuda/harness.h"
#include "tests/cuda/quantised.h"

namespace squareq::test {
namespace {

// One rounding of y, and in the low-rank term one of each factor (u or du, and an adapter): three of relative size
// 0.58 kBf16. In gradients of adapters u or du is rounded, which comes from a rounded adapter.
constexpr double kLimit = 3 * 0.58 * kBf16;

struct Adapter {
  std::int64_t rank, begin, rows;
  float scale;
};

struct Case {
  std::int64_t batch = 2, rows = 37, in = 48, out = 80;
  std::vector<Adapter> adapters = {{8, 0, 80, 0.5F}, {5, 26, 40, -0.25F}, {3, 60, 20, 1.0F}};
  bool bias = true, gelu = false, gate = false, u_wanted = true;
  Accumulate accumulate = Accumulate::kNo;
  std::int64_t pad = 0;
};

Device& w8a8() {
  static const std::unique_ptr<Device> device = make_cuda_device({.precision = DeviceOptions::Precision::kW8A8});
  return *device;
}

std::vector<std::int8_t> random_int8(std::int64_t count, std::uint32_t stream) {
  std::vector<float> normal(static_cast<std::size_t>(count));
  fill_random(normal, stream, 40.0F);
  std::vector<std::int8_t> values;
  for (const float v : normal) values.push_back(static_cast<std::int8_t>(std::clamp(v, -127.0F, 127.0F)));
  return values;
}

ConstView floats(const std::vector<float>& values, std::int64_t rows, std::int64_t cols) {
  return {reinterpret_cast<const std::byte*>(values.data()), DType::F32, 1, rows, cols};
}

// [rows + more_rows, cols + more_cols]: zeros, but for `from` at the given place.
template <class T>
std::vector<T> extended(const T* from, std::int64_t rows, std::int64_t cols, std::int64_t all_rows,
                        std::int64_t all_cols, std::int64_t row, std::int64_t col) {
  std::vector<T> out(static_cast<std::size_t>(all_rows * all_cols));
  for (std::int64_t r = 0; r < rows; ++r) {
    std::copy(from + r * cols, from + (r + 1) * cols, out.begin() + (row + r) * all_cols + col);
  }
  return out;
}

// [B * T, 2 cols]: quantised values, then the values themselves.
std::vector<float> beside(const HostRows& quantised, const ConstView& x) {
  std::vector<float> out;
  for (std::int64_t b = 0; b < x.batch; ++b) {
    for (std::int64_t r = 0; r < x.rows; ++r) {
      for (std::int64_t c = 0; c < x.cols; ++c) out.push_back(quantised.at(b * x.rows + r, c, x.cols));
      out.insert(out.end(), x.f32(b, r), x.f32(b, r) + x.cols);
    }
  }
  return out;
}

class Layer {
 public:
  explicit Layer(const Case& c)
      : c_(c),
        q_(random_int8(c.out * c.in, 1)),
        memory_(gpu()->allocate(q_.size())),
        scales_(1, 1, c.out, 2, DType::F32, 0, 0.002F),
        bias_(1, 1, c.out, 3, DType::F32) {
    const View device(memory_.get(), DType::I8, 1, c.out, c.in);
    gpu()->upload(q_.data(), device);
    weight = {.codec = Codec::kInt8Rows, .values = device, .scales = scales_.cuda};
    if (c.bias) weight.bias = bias_.cuda;
    for (std::size_t i = 0; i < c.adapters.size(); ++i) {
      const auto stream = static_cast<std::uint32_t>(10 * (i + 1));
      const Adapter& adapter = c.adapters[i];
      a_.push_back(std::make_unique<Twin>(1, adapter.rank, c.in, stream, DType::F32, 0, 0.3F));
      b_.push_back(std::make_unique<Twin>(1, adapter.rows, adapter.rank, stream + 1, DType::F32, 0, 0.3F));
      da.push_back(std::make_unique<Twin>(1, adapter.rank, c.in, stream + 2, DType::F32));
      db.push_back(std::make_unique<Twin>(1, adapter.rows, adapter.rank, stream + 3, DType::F32));
      lora.push_back({.a = a_[i]->cuda,
                      .b = b_[i]->cuda,
                      .da = da[i]->cuda,
                      .db = db[i]->cuda,
                      .row_begin = adapter.begin,
                      .scale = adapter.scale});
    }
    stacks_ = stack_on_gpu(lora, c.out);
  }

  // p with x quantised, on the CPU.
  void forward(LinearForward p) const {
    const std::int64_t wide = 2 * c_.in;
    const std::vector<float> x = beside(quantise_on_host(p.x, nullptr), p.x);
    const std::vector<std::int8_t> q = extended(q_.data(), c_.out, c_.in, c_.out, wide, 0, 0);
    std::vector<std::vector<float>> a;
    std::vector<LoraBranch> branches;
    for (std::size_t i = 0; i < lora.size(); ++i) {
      a.push_back(extended(a_[i]->cpu.f32(), lora[i].rank(), c_.in, lora[i].rank(), wide, 0, c_.in));
      branches.push_back({.a = floats(a[i], lora[i].rank(), wide),
                          .b = b_[i]->cpu,
                          .row_begin = lora[i].row_begin,
                          .scale = lora[i].scale});
    }
    const Weight twin{.codec = Codec::kInt8Rows,
                      .values = {reinterpret_cast<const std::byte*>(q.data()), DType::I8, 1, c_.out, wide},
                      .scales = scales_.cpu,
                      .bias = c_.bias ? ConstView(bias_.cpu) : ConstView{}};
    cpu_ops().linear({.x = {reinterpret_cast<const std::byte*>(x.data()), DType::F32, p.x.batch, p.x.rows, wide},
                      .weight = twin,
                      .lora = branches,
                      .u = p.u,
                      .y = p.y,
                      .act = p.act,
                      .gelu_begin = p.gelu_begin,
                      .gate = p.gate,
                      .residual = p.residual,
                      .sum = p.sum});
  }

  // p with dy times the weight's scales quantised, on the CPU; the adapters' gradients go to da and db.
  void backward(LinearBackward p) const {
    const std::int64_t tall = 2 * c_.out;
    const std::vector<float> dy = beside(quantise_on_host(p.dy, scales_.cpu.f32()), p.dy);
    const std::vector<std::int8_t> q = extended(q_.data(), c_.out, c_.in, tall, c_.in, 0, 0);
    const std::vector<float> ones(static_cast<std::size_t>(tall), 1.0F);
    std::vector<LoraBranch> branches;
    for (std::size_t i = 0; i < lora.size(); ++i) {
      branches.push_back({.a = a_[i]->cpu,
                          .b = b_[i]->cpu,
                          .da = da[i]->cpu,
                          .db = db[i]->cpu,
                          .row_begin = c_.out + lora[i].row_begin,
                          .scale = lora[i].scale});
    }
    const Weight twin{.codec = Codec::kInt8Rows,
                      .values = {reinterpret_cast<const std::byte*>(q.data()), DType::I8, 1, tall, c_.in},
                      .scales = floats(ones, 1, tall)};
    cpu_ops().linear_backward(
        {.dy = {reinterpret_cast<const std::byte*>(dy.data()), DType::F32, p.dy.batch, p.dy.rows, tall},
         .x = p.x,
         .weight = twin,
         .lora = branches,
         .u = p.u,
         .dx = p.dx,
         .accumulate = p.accumulate});
  }

  Weight weight;
  std::vector<LoraBranch> lora;  // of the GPU
  std::vector<std::unique_ptr<Twin>> da, db;

 private:
  const Case& c_;
  std::vector<std::int8_t> q_;
  Buffer memory_, stacks_;
  Twin scales_, bias_;
  std::vector<std::unique_ptr<Twin>> a_, b_;
};

void run(const Case& c) {
  Layer layer(c);
  std::int64_t ranks = 0;
  for (const Adapter& adapter : c.adapters) ranks += adapter.rank;
  const std::int64_t columns = adapter_columns(layer.lora);
  const auto twin = [&](std::int64_t cols, std::uint32_t stream) {
    return Twin(c.batch, c.rows, cols, stream, DType::BF16, c.pad);
  };
  Twin x = twin(c.in, 40), y = twin(c.out, 42), act = twin(c.out / 2, 43), residual = twin(c.out, 45);
  Twin sum = twin(c.out, 46), gate(c.batch, 1, c.out, 44, DType::F32), u(c.batch, c.rows, columns, 41);
  // The padding is zeros on the GPU and not written on the CPU.
  for (std::int64_t r = 0; r < c.batch * c.rows; ++r)
    std::fill(u.cpu.f32(0, r) + ranks, u.cpu.f32(0, r) + columns, 0.0F);
  const auto forward = [&](const Weight& weight, std::span<const LoraBranch> lora, View Twin::*at) {
    return LinearForward{.x = x.*at,
                         .weight = weight,
                         .lora = lora,
                         .u = c.u_wanted || at == &Twin::cpu ? u.*at : View{},
                         .y = y.*at,
                         .act = c.gelu ? act.*at : View{},
                         .gelu_begin = c.out - c.out / 2,
                         .gate = c.gate ? gate.*at : View{},
                         .residual = c.gate ? residual.*at : View{},
                         .sum = c.gate ? sum.*at : View{}};
  };
  layer.forward(forward(layer.weight, {}, &Twin::cpu));
  on_device(w8a8(), [&](Ops& ops) { ops.linear(forward(layer.weight, layer.lora, &Twin::cuda)); });
  CHECK(y.error() <= kLimit);
  if (ranks > 0 && c.u_wanted) CHECK(u.error() <= kLimit);
  if (c.gelu) CHECK(act.error() <= 2 * kLimit);
  if (c.gate) CHECK(sum.error() <= kLimit);
  if (!c.u_wanted) return;

  Twin dy = twin(c.out, 50), dx = twin(c.in, 51);
  const auto backward = [&](View Twin::*at) {
    return LinearBackward{.dy = dy.*at,
                          .x = x.*at,
                          .weight = layer.weight,
                          .lora = layer.lora,
                          .u = u.*at,
                          .dx = dx.*at,
                          .accumulate = c.accumulate};
  };
  layer.backward(backward(&Twin::cpu));
  on_device(w8a8(), [&](Ops& ops) { ops.linear_backward(backward(&Twin::cuda)); });
  CHECK(dx.error() <= kLimit);
  for (std::size_t i = 0; i < layer.lora.size(); ++i) {
    CHECK(layer.da[i]->error() <= kLimit);
    CHECK(layer.db[i]->error() <= kLimit);
  }
}

}  // namespace

TEST_CASE("linear in INT8: CUDA and CPU agree") {
  if (gpu() == nullptr) return;
  SECTION("adapters") { run({}); }
  SECTION("one sample, large") {
    run({.batch = 1, .rows = 300, .in = 1040, .out = 2064, .adapters = {{16, 0, 2064, 1.0F}}});
  }
  SECTION("slices") { run({.pad = 8}); }
  SECTION("slices without alignment") { run({.pad = 3}); }
  SECTION("GELU") { run({.gelu = true}); }
  SECTION("GELU, slices") { run({.gelu = true, .pad = 6}); }
  SECTION("gate and residual") { run({.gate = true}); }
  SECTION("gate and residual, slices") { run({.gate = true, .pad = 8}); }
  SECTION("neither bias nor adapters") { run({.adapters = {}, .bias = false}); }
  SECTION("u is not wanted") { run({.u_wanted = false}); }
  SECTION("gradients add up") { run({.accumulate = Accumulate::kYes, .pad = 8}); }
  SECTION("a quarter of the rows of a fused layer each") {
    run({.out = 256, .adapters = {{16, 0, 64, 1.0F}, {16, 64, 64, 1.0F}, {16, 128, 64, 1.0F}, {16, 192, 64, 1.0F}}});
  }
}

// What quantising costs: values of a normal distribution, the largest of n at m standard deviations, are rounded in
// steps of m / 127, which puts an independent error of (m / 127) / sqrt(12) of the standard deviation on each; a sum of
// products is off by as much of its own. m is about 3.9 for 2048 values, so 0.9 %; and no rounding at all would be far
// below half of that.
TEST_CASE("linear in INT8 rounds its input and nothing more") {
  if (gpu() == nullptr) return;
  Case c{.batch = 1, .rows = 256, .in = 2048, .out = 256, .adapters = {}, .bias = false};
  const Layer layer(c);
  const Twin x(c.batch, c.rows, c.in, 40);
  Twin y(c.batch, c.rows, c.out, 42), exact(c.batch, c.rows, c.out, 42);
  on_device(w8a8(), [&](Ops& ops) { ops.linear({.x = x.cuda, .weight = layer.weight, .y = y.cuda}); });
  on_gpu([&](Ops& ops) { ops.linear({.x = x.cuda, .weight = layer.weight, .y = exact.cuda}); });
  std::vector<float> expected(static_cast<std::size_t>(c.rows * c.out));
  std::vector<std::byte> bytes(exact.cuda.bytes());
  gpu()->download(exact.cuda, bytes.data());
  to_f32(bytes.data(), DType::BF16, expected.data(), static_cast<std::int64_t>(expected.size()));
  std::copy(expected.begin(), expected.end(), y.cpu.f32());
  CHECK(y.error() <= 0.012);
  CHECK(y.error() >= 0.005);
}

}  // namespace squareq::test
