#include <memory>

#include "kernels/ops.h"
#include "tests/catch.h"
#include "tests/kernels/tensor.h"

namespace squareq::test {
namespace {

struct Case {
  Memory memory = Memory::kContiguous;
  std::int64_t batch = 2, length = 7, heads = 3, features = 6;
  bool causal = false;
  bool bias = false;
  std::vector<std::int64_t> valid_keys;
  std::int64_t masked_end = 0;
};

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
        bias(shape.heads, shape.length, shape.length, 9, shape.memory),
        log_sum_exp(shape.batch, shape.heads, shape.length, 10, shape.memory) {}

  Tensor make(std::uint32_t stream) const {
    return {shape.batch, shape.length, shape.heads * shape.features, stream, shape.memory};
  }

  bool seen(std::int64_t b, std::int64_t query, std::int64_t key) const {
    if (shape.causal && key > query) return false;
    return shape.valid_keys.empty() || key < shape.valid_keys[index(b)] || key >= shape.masked_end;
  }

  // The output, or with `sums` the log-sum-exps.
  Doubles formula(const Doubles& queries, const Doubles& keys, const Doubles& values, bool sums = false) const {
    const std::int64_t width = shape.heads * shape.features;
    const Doubles biases = doubles(bias);
    Doubles output(queries.size());
    Doubles log_sums;
    const auto at = [&](std::int64_t b, std::int64_t t, std::int64_t h) {
      return index((b * shape.length + t) * width + h * shape.features);
    };
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        for (std::int64_t i = 0; i < shape.length; ++i) {
          Doubles weights(index(shape.length));
          double sum = 0.0;
          for (std::int64_t j = 0; j < shape.length; ++j) {
            if (!seen(b, i, j)) continue;
            double score = 0.0;
            for (std::size_t c = 0; c < index(shape.features); ++c)
              score += queries[at(b, i, h) + c] * keys[at(b, j, h) + c];
            score *= static_cast<double>(kScale);
            if (shape.bias) score += biases[index((h * shape.length + i) * shape.length + j)];
            weights[index(j)] = std::exp(score);
            sum += weights[index(j)];
          }
          log_sums.push_back(std::log(sum));
          for (std::int64_t j = 0; j < shape.length; ++j) {
            for (std::size_t c = 0; c < index(shape.features); ++c) {
              output[at(b, i, h) + c] += weights[index(j)] / sum * values[at(b, j, h) + c];
            }
          }
        }
      }
    }
    return sums ? log_sums : output;
  }

  Attention forward() const {
    return {.q = q,
            .k = k,
            .v = v,
            .heads = shape.heads,
            .scale = kScale,
            .causal = shape.causal,
            .bias = shape.bias ? ConstView(bias) : ConstView{},
            .valid_keys = shape.valid_keys,
            .masked_end = shape.masked_end,
            .o = o,
            .log_sum_exp = log_sum_exp};
  }
  AttentionBackward backward() const {
    return {.d_o = d_o,
            .q = q,
            .k = k,
            .v = v,
            .o = o,
            .log_sum_exp = log_sum_exp,
            .heads = shape.heads,
            .scale = kScale,
            .causal = shape.causal,
            .valid_keys = shape.valid_keys,
            .masked_end = shape.masked_end,
            .dq = dq,
            .dk = dk,
            .dv = dv};
  }

  static constexpr float kScale = 0.7F;
  Case shape;
  Tensor q, k, v, o, d_o, dq, dk, dv, bias, log_sum_exp;
};

void check_forward(Ops& ops, Problem& p) {
  ops.attention(p.forward());
  const Doubles q = doubles(p.q), k = doubles(p.k), v = doubles(p.v);
  CHECK(error(p.o, p.formula(q, k, v)) <= kForwardTolerance);
  CHECK(error(p.log_sum_exp, p.formula(q, k, v, true)) <= kForwardTolerance);
  for (Tensor* t : {&p.q, &p.k, &p.v, &p.o, &p.log_sum_exp}) CHECK(t->surroundings_kept());
}

void check_backward(Ops& ops, Problem& p) {
  ops.attention_backward(p.backward());
  const Doubles q = doubles(p.q), k = doubles(p.k), v = doubles(p.v), d_o = doubles(p.d_o);
  const auto gradient = [&](const Doubles& x, auto f) { return numeric_gradient(x, d_o, f); };
  CHECK(error(p.dq, gradient(q, [&](const Doubles& at) { return p.formula(at, k, v); })) <= kGradientTolerance);
  CHECK(error(p.dk, gradient(k, [&](const Doubles& at) { return p.formula(q, at, v); })) <= kGradientTolerance);
  CHECK(error(p.dv, gradient(v, [&](const Doubles& at) { return p.formula(q, k, at); })) <= kGradientTolerance);
  for (Tensor* t : {&p.dq, &p.dk, &p.dv}) CHECK(t->surroundings_kept());
}

}  // namespace

TEST_CASE("attention and its backward agree with the formula and with central differences") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  for (const Memory memory : {Memory::kContiguous, Memory::kSlice}) {
    for (const Case& c : {Case{.memory = memory}, Case{.memory = memory, .causal = true},
                          Case{.memory = memory, .valid_keys = {3, 0}, .masked_end = 5},
                          Case{.memory = memory, .valid_keys = {6, 5}, .masked_end = 5},
                          Case{.memory = memory, .batch = 1, .length = 1, .heads = 1, .features = 2},
                          Case{.memory = memory, .batch = 1, .length = 18, .heads = 2, .features = 5}}) {
      Problem p(c);
      check_forward(*ops, p);
      check_backward(*ops, p);
    }
  }
}

TEST_CASE("attention adds a bias to the scores") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  for (const Memory memory : {Memory::kContiguous, Memory::kSlice}) {
    Problem p({.memory = memory, .bias = true});
    check_forward(*ops, p);
  }
}

TEST_CASE("attention over several blocks of queries agrees with the formula") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  Problem plain({.batch = 1, .length = 300, .heads = 2, .features = 8});
  check_forward(*ops, plain);
  Problem causal({.memory = Memory::kSlice, .batch = 2, .length = 257, .heads = 1, .features = 4, .causal = true});
  check_forward(*ops, causal);
}

TEST_CASE(
    "the backward of attention over several blocks of queries agrees with central differences along a direction") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  for (const Case& c :
       {Case{.batch = 1, .length = 300, .heads = 2, .features = 8, .valid_keys = {40}, .masked_end = 140},
        Case{.memory = Memory::kSlice, .length = 257, .heads = 1, .features = 4, .causal = true}}) {
    const Problem p(c);
    ops->attention(p.forward());
    ops->attention_backward(p.backward());
    const Doubles q = doubles(p.q), k = doubles(p.k), v = doubles(p.v), d_o = doubles(p.d_o);
    const Doubles direction = doubles(p.make(11));
    const auto check = [&](const Tensor& gradient, auto f) {
      const double slope = numeric_gradient({0.0}, d_o, [&](const Doubles& step) {
        Doubles moved = direction;
        for (double& value : moved) value *= step[0];
        return f(moved);
      })[0];
      const Doubles d = doubles(gradient);
      double product = 0.0, gradient_norm = 0.0, direction_norm = 0.0;
      for (std::size_t i = 0; i < d.size(); ++i) {
        product += d[i] * direction[i];
        gradient_norm += d[i] * d[i];
        direction_norm += direction[i] * direction[i];
      }
      CHECK(std::fabs(product - slope) <= 1e-6 * std::sqrt(gradient_norm * direction_norm));
    };
    check(p.dq, [&](const Doubles& move) { return p.formula(plus(q, move), k, v); });
    check(p.dk, [&](const Doubles& move) { return p.formula(q, plus(k, move), v); });
    check(p.dv, [&](const Doubles& move) { return p.formula(q, k, plus(v, move)); });
  }
}

TEST_CASE("large scores neither overflow nor lose the row sum") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(1);
  Problem p({});
  ops->copy(p.q, p.q, Accumulate::kYes);
  for (int i = 0; i < 5; ++i) ops->copy(p.q, p.q, Accumulate::kYes);
  check_forward(*ops, p);
}

TEST_CASE("attention gives the same bits for any number of threads") {
  const std::unique_ptr<Ops> one = make_cpu_ops(1);
  const std::unique_ptr<Ops> three = make_cpu_ops(3);
  const Case c{.batch = 2, .length = 150, .heads = 3, .features = 16};
  const Problem p(c), r(c);
  one->attention(p.forward());
  three->attention(r.forward());
  one->attention_backward(p.backward());
  three->attention_backward(r.backward());
  CHECK(floats(p.o) == floats(r.o));
  CHECK(floats(p.log_sum_exp) == floats(r.log_sum_exp));
  CHECK(floats(p.dq) == floats(r.dq));
  CHECK(floats(p.dk) == floats(r.dk));
  CHECK(floats(p.dv) == floats(r.dv));
}

TEST_CASE("attention refuses shapes and masks that do not fit") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(1);
  const Problem p({});
  Attention bad = p.forward();
  bad.heads = 4;
  CHECK_THROWS_AS(ops->attention(bad), std::logic_error);
  bad = p.forward();
  const std::vector<std::int64_t> one_sample{3};
  bad.valid_keys = one_sample;
  CHECK_THROWS_AS(ops->attention(bad), std::logic_error);
  const std::vector<std::int64_t> nothing{0, 3};
  bad.valid_keys = nothing;
  bad.masked_end = 7;
  CHECK_THROWS_AS(ops->attention(bad), std::logic_error);
}

}  // namespace squareq::test
