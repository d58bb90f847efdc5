#include <array>
#include <cstring>
#include <memory>

#include "kernels/ops.h"
#include "tests/catch.h"
#include "tests/kernels/tensor.h"

namespace squareq::test {
namespace {

enum class Storage { kF32, kF16, kBf16, kInt8 };

// A frozen layer in any storage, and what its numbers are worth.
struct Layer {
  Layer(Storage storage, std::int64_t out, std::int64_t in, bool with_bias) : source(1, out, in, 50) {
    values = floats(source);
    if (storage == Storage::kInt8) {
      bytes.resize(values.size());
      for (std::size_t i = 0; i < values.size(); ++i) {
        const auto q = static_cast<std::int8_t>(std::lround(std::fmax(-127.0F, std::fmin(127.0F, values[i] * 40.0F))));
        const float scale = 0.01F + 0.002F * static_cast<float>(static_cast<std::int64_t>(i) / in);
        std::memcpy(&bytes[i], &q, 1);
        values[i] = scale * static_cast<float>(q);
      }
      for (std::int64_t r = 0; r < out; ++r) scales.push_back(0.01F + 0.002F * static_cast<float>(r));
      weight.codec = Codec::kInt8Rows;
      weight.values = ConstView(bytes.data(), DType::I8, 1, out, in);
      weight.scales = ConstView(reinterpret_cast<const std::byte*>(scales.data()), DType::F32, 1, 1, out);
    } else {
      const DType dtype = storage == Storage::kF32 ? DType::F32 : storage == Storage::kF16 ? DType::F16 : DType::BF16;
      bytes.resize(values.size() * size_of(dtype));
      from_f32(values.data(), dtype, bytes.data(), out * in);
      to_f32(bytes.data(), dtype, values.data(), out * in);
      weight.values = ConstView(bytes.data(), dtype, 1, out, in);
    }
    if (!with_bias) return;
    bias.resize(index(out));
    fill_random(bias, 51);
    bias_bytes.resize(bias.size() * 2);
    from_f32(bias.data(), DType::BF16, bias_bytes.data(), out);
    to_f32(bias_bytes.data(), DType::BF16, bias.data(), out);
    weight.bias = ConstView(bias_bytes.data(), DType::BF16, 1, 1, out);
  }

  Tensor source;
  std::vector<float> values, scales, bias;
  std::vector<std::byte> bytes, bias_bytes;
  Weight weight;
};

struct Adapter {
  Adapter(std::int64_t batch, std::int64_t rank, std::int64_t in, std::int64_t row_begin_in, std::int64_t rows,
          float scale_in, bool trained_in, std::uint32_t stream)
      : a(1, rank, in, stream),
        b(1, rows, rank, stream + 1),
        da(1, rank, in, stream + 2),
        db(1, rows, rank, stream + 3),
        keep(batch, 1, rank, stream + 4),
        row_begin(row_begin_in),
        scale(scale_in),
        trained(trained_in) {}

  LoraBranch branch() const {
    return {.a = a,
            .b = b,
            .da = trained ? da.view() : View{},
            .db = trained ? db.view() : View{},
            .keep = dropout() ? ConstView(keep) : ConstView(),
            .row_begin = row_begin,
            .scale = scale};
  }

  bool dropout() const { return scale < 0.0F; }  // on one adapter of a case

  Tensor a, b, da, db, keep;
  std::int64_t row_begin;
  float scale;
  bool trained;
};

enum class Epilogue { kPlain, kGelu, kGate };

struct Case {
  Storage storage = Storage::kF32;
  Memory memory = Memory::kContiguous;
  std::int64_t batch = 2, rows = 5, in = 13, out = 19;
  bool bias = true;
  Epilogue epilogue = Epilogue::kPlain;
  std::int64_t gelu_begin = 0;
  bool adapters = true;
  Accumulate accumulate = Accumulate::kNo;
};

// All tensors of a case, and the formulae in float64.
struct Problem {
  explicit Problem(const Case& c)
      : shape(c),
        layer(c.storage, c.out, c.in, c.bias),
        x(c.batch, c.rows, c.in, 60, c.memory),
        y(c.batch, c.rows, c.out, 61, c.memory),
        act(c.batch, c.rows, c.out - c.gelu_begin, 62, c.memory),
        gate(c.batch, 1, c.out, 63, c.memory),
        residual(c.batch, c.rows, c.out, 64, c.memory),
        sum(c.batch, c.rows, c.out, 65, c.memory),
        dx(c.batch, c.rows, c.in, 66, c.memory),
        u(c.batch, c.rows, c.adapters ? 16 : 0, 67) {
    if (!c.adapters) return;
    adapters.emplace_back(c.batch, 2, c.in, 0, c.out, 0.5F, true, 70U);
    adapters.emplace_back(c.batch, 3, c.in, c.out / 3, c.out / 2, -1.25F, true, 80U);
    adapters.emplace_back(c.batch, 1, c.in, c.out - 2, 2, 2.0F, false, 90U);
    for (const Adapter& adapter : adapters) branches.push_back(adapter.branch());
  }

  Doubles product(const Doubles& x_at, const Doubles* a_at = nullptr, const Doubles* b_at = nullptr,
                  std::size_t which = 0) const {
    const std::int64_t rows = shape.batch * shape.rows;
    Doubles result(index(rows * shape.out));
    for (std::int64_t r = 0; r < rows; ++r) {
      const double* row = x_at.data() + r * shape.in;
      for (std::int64_t o = 0; o < shape.out; ++o) {
        double value = shape.bias ? static_cast<double>(layer.bias[index(o)]) : 0.0;
        for (std::int64_t i = 0; i < shape.in; ++i) {
          value += row[i] * static_cast<double>(layer.values[index(o * shape.in + i)]);
        }
        result[index(r * shape.out + o)] = value;
      }
      for (std::size_t n = 0; n < adapters.size(); ++n) {
        const Adapter& adapter = adapters[n];
        const Doubles a = a_at != nullptr && n == which ? *a_at : doubles(adapter.a);
        const Doubles b = b_at != nullptr && n == which ? *b_at : doubles(adapter.b);
        const std::int64_t rank = adapter.a.view().rows;
        const Doubles keep = doubles(adapter.keep);
        for (std::int64_t k = 0; k < rank; ++k) {
          double down = 0.0;
          for (std::int64_t i = 0; i < shape.in; ++i) down += row[i] * a[index(k * shape.in + i)];
          if (adapter.dropout()) down *= keep[index(r / shape.rows * rank + k)];
          for (std::int64_t o = 0; o < adapter.b.view().rows; ++o) {
            result[index(r * shape.out + adapter.row_begin + o)] +=
                static_cast<double>(adapter.scale) * down * b[index(o * rank + k)];
          }
        }
      }
    }
    return result;
  }

  Doubles finish(const Doubles& product_values) const {
    Doubles result;
    const Doubles gates = doubles(gate);
    const Doubles residuals = doubles(residual);
    for (std::int64_t r = 0; r < shape.batch * shape.rows; ++r) {
      for (std::int64_t o = 0; o < shape.out; ++o) {
        const double value = product_values[index(r * shape.out + o)];
        if (shape.epilogue == Epilogue::kPlain) {
          result.push_back(value);
        } else if (shape.epilogue == Epilogue::kGate) {
          result.push_back(residuals[index(r * shape.out + o)] + gates[index(r / shape.rows * shape.out + o)] * value);
        } else if (o >= shape.gelu_begin) {
          result.push_back(0.5 * value *
                           (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (value + 0.044715 * std::pow(value, 3)))));
        }
      }
    }
    return result;
  }

  const Tensor& output() const {
    return shape.epilogue == Epilogue::kPlain ? y : shape.epilogue == Epilogue::kGelu ? act : sum;
  }

  LinearForward forward(bool with_y = true) const {
    LinearForward p{.x = x, .weight = layer.weight, .lora = branches, .u = u, .y = with_y ? y.view() : View{}};
    if (shape.epilogue == Epilogue::kGelu) {
      p.act = act;
      p.gelu_begin = shape.gelu_begin;
    } else if (shape.epilogue == Epilogue::kGate) {
      p.gate = gate;
      p.residual = residual;
      p.sum = sum;
    }
    return p;
  }

  // From the cotangent of the output to dx, da and db through the operations that a model would call.
  void backward(Ops& ops, const Tensor& cotangent) const {
    Tensor dy(shape.batch, shape.rows, shape.out, 99, shape.memory);
    if (shape.epilogue == Epilogue::kGelu) {
      ops.fill(dy, 0.0F);
      const std::int64_t n = shape.out - shape.gelu_begin;
      ops.activation_backward(Activation::kGeluTanh, cotangent, y.view().col_slice(shape.gelu_begin, n),
                              dy.view().col_slice(shape.gelu_begin, n), Accumulate::kNo);
    } else if (shape.epilogue == Epilogue::kGate) {
      ops.gate_backward(cotangent, gate, {}, dy, {});
    } else {
      ops.copy(cotangent, dy, Accumulate::kNo);
    }
    ops.linear_backward(
        {.dy = dy, .x = x, .weight = layer.weight, .lora = branches, .u = u, .dx = dx, .accumulate = shape.accumulate});
  }

  Case shape;
  Layer layer;
  Tensor x, y, act, gate, residual, sum, dx, u;
  std::vector<Adapter> adapters;
  std::vector<LoraBranch> branches;
};

void check_case(const Case& c) {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  Problem p(c);
  ops->linear(p.forward());
  const Doubles product = p.product(doubles(p.x));
  CHECK(error(p.y, product) <= kForwardTolerance);
  CHECK(error(p.output(), p.finish(product)) <= kForwardTolerance);

  const View out = p.output();
  const Tensor cotangent(out.batch, out.rows, out.cols, 98, c.memory);
  const Doubles old_dx = doubles(p.dx);
  std::vector<Doubles> old_da, old_db;
  for (const Adapter& adapter : p.adapters) {
    old_da.push_back(doubles(adapter.da));
    old_db.push_back(doubles(adapter.db));
  }
  p.backward(*ops, cotangent);

  Doubles dx =
      numeric_gradient(doubles(p.x), doubles(cotangent), [&](const Doubles& at) { return p.finish(p.product(at)); });
  if (c.accumulate == Accumulate::kYes) dx = plus(dx, old_dx);
  CHECK(error(p.dx, dx) <= kGradientTolerance);
  for (std::size_t n = 0; n < p.adapters.size(); ++n) {
    const Adapter& adapter = p.adapters[n];
    Doubles da = old_da[n];
    Doubles db = old_db[n];
    if (adapter.trained) {
      da = plus(da, numeric_gradient(doubles(adapter.a), doubles(cotangent), [&](const Doubles& at) {
                  return p.finish(p.product(doubles(p.x), &at, nullptr, n));
                }));
      db = plus(db, numeric_gradient(doubles(adapter.b), doubles(cotangent), [&](const Doubles& at) {
                  return p.finish(p.product(doubles(p.x), nullptr, &at, n));
                }));
    }
    CHECK(error(adapter.da, da) <= kGradientTolerance);
    CHECK(error(adapter.db, db) <= kGradientTolerance);
  }
  for (Tensor* t : {&p.x, &p.y, &p.act, &p.gate, &p.residual, &p.sum, &p.dx}) CHECK(t->surroundings_kept());
}

}  // namespace

TEST_CASE("linear agrees with the formula and with central differences, for every storage") {
  for (const Storage storage : {Storage::kF32, Storage::kF16, Storage::kBf16, Storage::kInt8}) {
    for (const Memory memory : {Memory::kContiguous, Memory::kSlice})
      check_case({.storage = storage, .memory = memory});
  }
}

TEST_CASE("linear agrees with the formula and with central differences, for every epilogue") {
  for (const Memory memory : {Memory::kContiguous, Memory::kSlice}) {
    check_case({.memory = memory, .bias = false});
    check_case({.memory = memory, .adapters = false, .accumulate = Accumulate::kYes});
    check_case({.memory = memory, .epilogue = Epilogue::kGelu, .accumulate = Accumulate::kYes});
    check_case({.storage = Storage::kInt8, .memory = memory, .epilogue = Epilogue::kGelu, .gelu_begin = 7});
    check_case({.storage = Storage::kBf16, .memory = memory, .epilogue = Epilogue::kGate});
    check_case({.memory = memory, .batch = 1, .rows = 1, .in = 1, .out = 6, .epilogue = Epilogue::kGate});
  }
}

TEST_CASE("linear over many tiles agrees with the formula, for few and for many rows") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  for (const Storage storage : {Storage::kF32, Storage::kF16, Storage::kBf16, Storage::kInt8}) {
    for (const Memory memory : {Memory::kContiguous, Memory::kSlice}) {
      for (const std::int64_t rows : {1, 150}) {
        const Problem p({.storage = storage,
                         .memory = memory,
                         .batch = 3,
                         .rows = rows,
                         .in = 901,  // more than one slab of the contraction
                         .out = 300,
                         .epilogue = Epilogue::kGelu,
                         .gelu_begin = 270});
        ops->linear(p.forward());
        const Doubles product = p.product(doubles(p.x));
        CHECK(error(p.y, product) <= kForwardTolerance);
        CHECK(error(p.act, p.finish(product)) <= kForwardTolerance);
      }
    }
  }
}

TEST_CASE("the backward of linear over many tiles agrees with the formula") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  for (const Memory memory : {Memory::kContiguous, Memory::kSlice}) {
    const Case c{
        .storage = Storage::kInt8, .memory = memory, .batch = 3, .rows = 100, .in = 300, .out = 801, .adapters = false};
    const Problem p(c);
    const Tensor dy(c.batch, c.rows, c.out, 5, memory);
    p.backward(*ops, dy);
    Doubles expected(index(c.batch * c.rows * c.in));
    const Doubles d = doubles(dy);
    for (std::int64_t r = 0; r < c.batch * c.rows; ++r) {
      for (std::int64_t o = 0; o < c.out; ++o) {
        for (std::int64_t i = 0; i < c.in; ++i) {
          expected[index(r * c.in + i)] +=
              d[index(r * c.out + o)] * static_cast<double>(p.layer.values[index(o * c.in + i)]);
        }
      }
    }
    CHECK(error(p.dx, expected) <= kForwardTolerance);
  }
}

TEST_CASE("linear leaves out what nobody reads") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  for (const Epilogue epilogue : {Epilogue::kGelu, Epilogue::kGate}) {
    const Problem with({.epilogue = epilogue});
    const Problem without({.epilogue = epilogue});
    ops->linear(with.forward());
    ops->linear(without.forward(false));
    CHECK(floats(with.output()) == floats(without.output()));
    CHECK(floats(without.y) == floats(Tensor(2, 5, 19, 61)));
  }
  SECTION("the down-projection alone") {
    const Problem with({});
    const Problem without({});
    ops->linear(with.forward());
    ops->linear(without.forward(false));
    CHECK(floats(with.u) == floats(without.u));
    CHECK(floats(without.y) == floats(Tensor(2, 5, 19, 61)));
  }
  SECTION("the down-projection, where it is known") {
    const Problem with({.memory = Memory::kSlice});
    const Problem without({.memory = Memory::kSlice});
    ops->linear(with.forward());
    for (const Adapter& adapter : without.adapters) ops->fill(adapter.a.view(), 0.0F);
    ops->copy(with.u, without.u, Accumulate::kNo);
    LinearForward again = without.forward();
    again.u_known = true;
    ops->linear(again);
    CHECK(floats(with.y) == floats(without.y));
    CHECK(floats(with.u) == floats(without.u));
  }
  SECTION("adapters without dx, dx without trained adapters") {
    const Problem with({});
    const Problem without({});
    const Tensor dy(2, 5, 19, 98);
    ops->linear(with.forward());
    with.backward(*ops, dy);
    ops->linear_backward(
        {.dy = dy, .x = without.x, .weight = without.layer.weight, .lora = without.branches, .u = with.u});
    CHECK(floats(with.adapters[0].da) == floats(without.adapters[0].da));
    CHECK(floats(with.adapters[1].db) == floats(without.adapters[1].db));
    std::vector<LoraBranch> frozen = without.branches;
    for (LoraBranch& branch : frozen) branch.da = branch.db = View{};
    ops->linear_backward({.dy = dy, .weight = without.layer.weight, .lora = frozen, .dx = without.dx});
    CHECK(floats(with.dx) == floats(without.dx));
  }
}

TEST_CASE("sum may be the residual itself") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  const Problem p({.memory = Memory::kSlice, .epilogue = Epilogue::kGate});
  ops->linear(p.forward());
  LinearForward in_place = p.forward();
  in_place.sum = p.residual;
  ops->linear(in_place);
  CHECK(floats(p.residual) == floats(p.sum));
}

TEST_CASE("linear gives the same bits for any number of threads") {
  const std::unique_ptr<Ops> one = make_cpu_ops(1);
  const std::unique_ptr<Ops> three = make_cpu_ops(3);
  for (const std::int64_t rows : {1, 70, 200}) {
    const Case c{.storage = Storage::kInt8,
                 .memory = Memory::kSlice,
                 .rows = rows,
                 .in = 260,
                 .out = 530,
                 .epilogue = Epilogue::kGelu};
    const Problem p(c);
    const Problem q(c);
    const Tensor cotangent(c.batch, c.rows, c.out, 98);
    one->linear(p.forward());
    three->linear(q.forward());
    p.backward(*one, cotangent);
    q.backward(*three, cotangent);
    CHECK(floats(p.y) == floats(q.y));
    CHECK(floats(p.act) == floats(q.act));
    CHECK(floats(p.dx) == floats(q.dx));
    for (std::size_t n = 0; n < p.adapters.size(); ++n) {
      CHECK(floats(p.adapters[n].da) == floats(q.adapters[n].da));
      CHECK(floats(p.adapters[n].db) == floats(q.adapters[n].db));
    }
  }
}

TEST_CASE("linear refuses shapes that do not fit") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(1);
  const Problem p({});
  LinearForward narrow_x = p.forward();
  narrow_x.x = p.x.view().col_slice(0, 12);
  CHECK_THROWS_AS(ops->linear(narrow_x), std::logic_error);
  LinearForward narrow_y = p.forward();
  narrow_y.y = p.y.view().col_slice(0, 18);
  CHECK_THROWS_AS(ops->linear(narrow_y), std::logic_error);
  std::vector<LoraBranch> branches = p.branches;
  branches[2].row_begin += 1;
  LinearForward low_adapter = p.forward();
  low_adapter.lora = branches;
  CHECK_THROWS_AS(ops->linear(low_adapter), std::logic_error);
  const Tensor dy(2, 5, 19);
  CHECK_THROWS_AS(ops->linear_backward({.dy = dy, .weight = p.layer.weight, .lora = p.branches, .dx = p.dx}),
                  std::logic_error);
}

}  // namespace squareq::test
