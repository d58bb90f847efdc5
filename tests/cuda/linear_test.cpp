#include <algorithm>
#include <cstring>

#include "tests/cuda/both.h"

namespace squareq::test {
namespace {

// y is one rounding of a sum whose inputs are equal in both places but for one rounding of each weight (INT8 times
// scale) and, with adapters, of u and of y before they are added: at most four independent roundings of relative size
// 0.58 kBf16.
constexpr double kForwardLimit = 4 * 0.58 * kBf16;
// Gradients of adapters pass through du or u, rounded once, and through rounded a or b.
constexpr double kGradientLimit = 4 * 0.58 * kBf16;
constexpr double kFloatLimit = 2e-6;

enum class Storage { kF32, kBf16, kInt8 };

struct Case {
  Storage storage = Storage::kInt8;
  std::int64_t batch = 2, rows = 37, in = 48, out = 80;
  DType x = DType::BF16, y = DType::BF16;
  bool bias = true, adapters = true;
  bool gelu = false, gate = false;
  Accumulate accumulate = Accumulate::kNo;
  std::int64_t pad = 0;
  std::int64_t rank = 8;  // of the first adapter

  std::int64_t ranks() const { return adapters ? rank + 6 : 0; }
  std::int64_t u_cols() const { return (ranks() + 15) / 16 * 16; }
};

struct Layer {
  explicit Layer(const Case& c)
      : values(1, c.out, c.in, 1, c.storage == Storage::kF32 ? DType::F32 : DType::BF16, 0, 0.1F),
        scales(1, 1, c.out, 2, DType::F32, 0, 0.002F),
        bias(1, 1, c.out, 3, DType::F32) {
    cpu = {.values = values.cpu};
    cuda = {.values = values.cuda};
    if (c.storage == Storage::kInt8) {
      q.resize(static_cast<std::size_t>(c.out * c.in));
      for (std::size_t i = 0; i < q.size(); ++i)
        q[i] = static_cast<std::int8_t>(static_cast<int>(i * 7919 % 255) - 127);
      memory = gpu()->allocate(q.size());
      cpu = {.codec = Codec::kInt8Rows,
             .values = ConstView(reinterpret_cast<const std::byte*>(q.data()), DType::I8, 1, c.out, c.in),
             .scales = scales.cpu};
      const View device(memory.get(), DType::I8, 1, c.out, c.in);
      gpu()->upload(q.data(), device);
      cuda = {.codec = Codec::kInt8Rows, .values = device, .scales = scales.cuda};
    }
    if (!c.bias) return;
    cpu.bias = bias.cpu;
    cuda.bias = bias.cuda;
  }

  Twin values, scales, bias;
  std::vector<std::int8_t> q;
  Buffer memory;
  Weight cpu, cuda;
};

struct Adapter {
  Adapter(std::int64_t batch, std::int64_t rank, std::int64_t in, std::int64_t begin_in, std::int64_t rows,
          float scale_in, bool trained_in, std::uint32_t stream)
      : a(1, rank, in, stream, DType::F32),
        b(1, rows, rank, stream + 1, DType::F32),
        da(1, rank, in, stream + 2, DType::F32),
        db(1, rows, rank, stream + 3, DType::F32),
        keep(batch, 1, rank, stream + 4, DType::F32),
        begin(begin_in),
        scale(scale_in),
        trained(trained_in) {}

  LoraBranch branch(View Twin::*at) const {
    return {.a = a.*at,
            .b = b.*at,
            .da = trained ? da.*at : View{},
            .db = trained ? db.*at : View{},
            .keep = scale < 0.0F ? keep.*at : View{},
            .row_begin = begin,
            .scale = scale};
  }

  Twin a, b, da, db, keep;
  std::int64_t begin;
  float scale;
  bool trained;
};

void run(const Case& c) {
  const Layer layer(c);
  std::vector<Adapter> adapters;
  if (c.adapters) {
    adapters.emplace_back(c.batch, c.rank, c.in, 0, c.out, 0.5F, true, 10U);
    adapters.emplace_back(c.batch, 5, c.in, c.out / 3, c.out / 2, -0.25F, true, 20U);
    adapters.emplace_back(c.batch, 1, c.in, c.out - 2, 2, 1.0F, false, 30U);
  }
  std::vector<LoraBranch> cpu_lora, cuda_lora;
  for (const Adapter& adapter : adapters) {
    cpu_lora.push_back(adapter.branch(&Twin::cpu));
    cuda_lora.push_back(adapter.branch(&Twin::cuda));
  }
  const Buffer stacks = stack_on_gpu(cuda_lora, c.out);
  const bool few = c.batch * c.rows <= 16 && c.x == DType::F32 && c.y == DType::F32;
  const DType u_type = few ? DType::F32 : DType::BF16;
  Twin x(c.batch, c.rows, c.in, 40, c.x, c.pad), u(c.batch, c.rows, c.u_cols(), 41, u_type);
  // The padding after the ranks: zeros on the GPU if there are many rows, else not written.
  const std::int64_t padding = few ? 0 : c.u_cols() - c.ranks();
  for (std::int64_t r = 0; r < c.batch * c.rows; ++r) std::fill_n(u.cpu.f32(0, r) + c.ranks(), padding, 0.0F);
  Twin y(c.batch, c.rows, c.out, 42, c.y, c.pad), act(c.batch, c.rows, c.out / 2, 43, DType::BF16, c.pad);
  Twin gate(c.batch, 1, c.out, 44, DType::F32), residual(c.batch, c.rows, c.out, 45, c.y, c.pad);
  Twin sum(c.batch, c.rows, c.out, 46, c.y, c.pad);
  const auto forward = [&](Ops& ops, const Weight& weight, std::span<const LoraBranch> lora, View Twin::*at,
                           bool u_known = false) {
    ops.linear({.x = x.*at,
                .weight = weight,
                .lora = lora,
                .u = u.*at,
                .u_known = u_known,
                .y = y.*at,
                .act = c.gelu ? act.*at : View{},
                .gelu_begin = c.out - c.out / 2,
                .gate = c.gate ? gate.*at : View{},
                .residual = c.gate ? residual.*at : View{},
                .sum = c.gate ? sum.*at : View{}});
  };
  const double limit = few ? kFloatLimit : kForwardLimit;
  forward(cpu_ops(), layer.cpu, cpu_lora, &Twin::cpu);
  on_gpu([&](Ops& ops) { forward(ops, layer.cuda, cuda_lora, &Twin::cuda); });
  CHECK(y.error() <= limit);
  if (c.adapters) CHECK(u.error() <= limit);
  if (c.gelu) CHECK(act.error() <= 2 * limit);
  if (c.gate) CHECK(sum.error() <= limit);

  if (!few && c.adapters) {
    // The same from the u that is there: the stacked matrices that it came from are not read.
    const std::vector<std::byte> before = bytes_of(y.all());
    on_gpu([&](Ops& ops) {
      ops.fill(y.cuda, 0.0F);
      ops.fill(cuda_lora.front().stacked_a, 0.0F);
      forward(ops, layer.cuda, cuda_lora, &Twin::cuda, true);
    });
    CHECK(bytes_of(y.all()) == before);
    on_gpu([&](Ops& ops) { ops.stack_adapters(cuda_lora); });
  }

  Twin dy(c.batch, c.rows, c.out, 50, c.y, c.pad), dx(c.batch, c.rows, c.in, 51, c.x, c.pad);
  const auto backward = [&](Ops& ops, const Weight& weight, std::span<const LoraBranch> lora, View Twin::*at) {
    ops.linear_backward({.dy = dy.*at,
                         .x = x.*at,
                         .weight = weight,
                         .lora = lora,
                         .u = u.*at,
                         .dx = dx.*at,
                         .accumulate = c.accumulate});
  };
  backward(cpu_ops(), layer.cpu, cpu_lora, &Twin::cpu);
  on_gpu([&](Ops& ops) { backward(ops, layer.cuda, cuda_lora, &Twin::cuda); });
  CHECK(dx.error() <= (few ? kFloatLimit : kGradientLimit));
  for (Adapter& adapter : adapters) {
    if (!adapter.trained) continue;
    CHECK(adapter.da.error() <= (few ? kFloatLimit : kGradientLimit));
    CHECK(adapter.db.error() <= (few ? kFloatLimit : kGradientLimit));
  }
}

}  // namespace

TEST_CASE("linear: CUDA and CPU agree") {
  if (gpu() == nullptr) return;
  SECTION("INT8, adapters") { run({}); }
  SECTION("INT8, one sample") { run({.batch = 1, .rows = 512, .in = 256, .out = 384}); }
  SECTION("higher ranks") {
    run({.rank = 20});
    run({.rows = 150, .rank = 40});
    run({.batch = 1, .rows = 300, .in = 208, .out = 1100, .rank = 100});
  }
  SECTION("INT8, slices") { run({.pad = 8}); }
  SECTION("many rows") {
    for (const std::int64_t batch : {1, 2}) {
      run({.batch = batch, .rows = 1100, .in = 208, .out = 304, .pad = 8});
      run({.batch = batch, .rows = 1100, .in = 208, .out = 304, .gelu = true, .accumulate = Accumulate::kYes});
      run({.storage = Storage::kBf16, .batch = batch, .rows = 1100, .in = 208, .out = 304, .gate = true, .rank = 40});
    }
  }
  SECTION("odd sizes and slices") { run({.rows = 21, .in = 13, .out = 19, .pad = 3}); }
  SECTION("GELU") { run({.gelu = true}); }
  SECTION("gate and residual, slices") { run({.gate = true, .pad = 8}); }
  SECTION("gate and residual, odd") { run({.rows = 9, .in = 13, .out = 19, .gate = true}); }
  SECTION("float32 weights, float32 rows in and out") {
    run({.storage = Storage::kF32, .x = DType::F32, .y = DType::F32});
  }
  SECTION("bfloat16 weights without bias or adapters") {
    run({.storage = Storage::kBf16, .bias = false, .adapters = false});
  }
  SECTION("gradients add up") { run({.accumulate = Accumulate::kYes}); }
}

TEST_CASE("adapters of any number are stacked") {
  if (gpu() == nullptr) return;
  constexpr std::int64_t kIn = 21, kOut = 300;
  std::vector<Adapter> adapters;
  std::vector<LoraBranch> lora;
  for (std::int64_t i = 0; i < 90; ++i) {
    adapters.emplace_back(1, 1 + i % 35, kIn, 2 * i, 100 + i % 7, 0.25F + static_cast<float>(i), true,
                          static_cast<std::uint32_t>(5 * i));
    lora.push_back(adapters.back().branch(&Twin::cuda));
  }
  const Buffer memory = stack_on_gpu(lora, kOut);
  std::vector<float> a, b;
  for (const Adapter& adapter : adapters) {
    for (std::int64_t r = 0; r < adapter.a.cpu.rows; ++r) {
      a.insert(a.end(), adapter.a.cpu.f32(0, r), adapter.a.cpu.f32(0, r) + kIn);
      const std::size_t row = b.size();
      b.resize(row + kOut);
      for (std::int64_t o = 0; o < adapter.b.cpu.rows; ++o) {
        b[row + static_cast<std::size_t>(adapter.begin + o)] = adapter.scale * adapter.b.cpu.f32(0, o)[r];
      }
    }
  }
  const std::int64_t rows = adapter_columns(lora);
  const auto check = [&](std::vector<float>& expected, const View& first, std::int64_t cols) {
    expected.resize(static_cast<std::size_t>(rows * cols));
    std::vector<std::byte> rounded(expected.size() * size_of(DType::BF16));
    from_f32(expected.data(), DType::BF16, rounded.data(), rows * cols);
    CHECK(bytes_of(View(first.data, DType::BF16, 1, rows, cols)) == rounded);
  };
  check(a, lora.front().stacked_a, kIn);
  check(b, lora.front().stacked_b, kOut);
}

TEST_CASE("linear on few rows: CUDA and CPU agree") {
  if (gpu() == nullptr) return;
  for (const Storage storage : {Storage::kInt8, Storage::kBf16, Storage::kF32}) {
    for (const std::int64_t batch : {1, 3, 16}) {
      run({.storage = storage, .batch = batch, .rows = 1, .x = DType::F32, .y = DType::F32});
      run({.storage = storage, .batch = batch, .rows = 1, .in = 37, .out = 41, .x = DType::F32, .y = DType::F32});
    }
  }
  run({.batch = 2, .rows = 1, .x = DType::F32, .y = DType::F32, .accumulate = Accumulate::kYes});
  for (const std::int64_t out : {1030, 8203}) {
    run({.batch = 3, .rows = 1, .in = 112, .out = out, .x = DType::F32, .y = DType::F32});
    run({.batch = 1, .rows = 1, .in = 37, .out = out, .x = DType::F32, .y = DType::F32});
  }
}

}  // namespace squareq::test
