#include "model/t5.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

#include "model/linear.h"

namespace squareq::t5 {
namespace {

struct Embed {
  ConstView table;  // [1, vocab, width]
};

struct Block {
  std::int64_t index = 0;
  Linear q, k, v, o, wi_0, wi_1, wo;
  ConstView attention_norm, mlp_norm;  // [1, 1, width]
  ConstView relative_bias;             // [1, buckets, H], block 0 only
};

struct Final {
  ConstView norm;
};

Linear make_linear(std::string name, std::int64_t out, std::int64_t in) {
  return {.name = std::move(name), .out = out, .in = in, .bias = false};
}

std::string block_id(std::int64_t i) { return "encoder.block." + std::to_string(i); }

Block make_block(const T5Shape& s, std::int64_t i) {
  const std::string attention = block_id(i) + ".layer.0.SelfAttention.";
  const std::string mlp = block_id(i) + ".layer.1.DenseReluDense.";
  const std::int64_t inner = s.heads * s.head_dim;
  return {.index = i,
          .q = make_linear(attention + "q", inner, s.width),
          .k = make_linear(attention + "k", inner, s.width),
          .v = make_linear(attention + "v", inner, s.width),
          .o = make_linear(attention + "o", s.width, inner),
          .wi_0 = make_linear(mlp + "wi_0", s.mlp_hidden, s.width),
          .wi_1 = make_linear(mlp + "wi_1", s.mlp_hidden, s.width),
          .wo = make_linear(mlp + "wo", s.width, s.mlp_hidden)};
}

void weights(WeightVisitor& visitor, const State& state, Embed& embed) {
  visitor.tensor("shared.weight", embed.table, state.shape.vocab, state.shape.width);
}

void weights(WeightVisitor& visitor, const State& state, Block& block) {
  const T5Shape& s = state.shape;
  const std::string id = block_id(block.index);
  visitor.tensor(id + ".layer.0.layer_norm.weight", block.attention_norm, 1, s.width);
  for (Linear* linear : {&block.q, &block.k, &block.v, &block.o}) linear->visit(visitor);
  if (block.index == 0) {
    visitor.tensor(id + ".layer.0.SelfAttention.relative_attention_bias.weight", block.relative_bias, s.buckets,
                   s.heads);
  }
  visitor.tensor(id + ".layer.1.layer_norm.weight", block.mlp_norm, 1, s.width);
  for (Linear* linear : {&block.wi_0, &block.wi_1, &block.wo}) linear->visit(visitor);
}

void weights(WeightVisitor& visitor, const State& state, Final& final) {
  visitor.tensor("encoder.final_layer_norm.weight", final.norm, 1, state.shape.width);
}

float epsilon(const State& s) { return static_cast<float>(s.shape.epsilon); }

void forward(Ops& ops, const State& s, const Embed& embed) { ops.gather(embed.table, s.ids, s.x); }

// A row of heads as a batch of one-row samples.
template <class V>
V by_head(V v) {
  v.batch = v.rows;
  v.batch_stride = v.row_stride;
  v.rows = 1;
  return v;
}

// bias[h, query, key] depends on key - query alone: the row of each query is a window of one vector per head.
void fill_bias(Ops& ops, const State& s, const Block& block) {
  std::vector<std::int32_t> buckets;
  for (std::int64_t r = 1 - s.length; r < s.length; ++r) buckets.push_back(relative_bucket(s.shape, r));
  ops.gather(block.relative_bias, buckets, s.relative_rows);
  ops.transpose(s.relative_rows, s.relative);
  for (std::int64_t query = 0; query < s.length; ++query) {
    ops.copy(by_head(s.relative.col_slice(s.length - 1 - query, s.length)), s.bias.row_slice(query, 1),
             Accumulate::kNo);
  }
}

void forward(Ops& ops, const State& s, const Block& block) {
  const std::int64_t inner = s.shape.heads * s.shape.head_dim;
  if (block.index == 0) fill_bias(ops, s, block);

  ops.rms_norm(s.x, block.attention_norm, epsilon(s), s.n);
  block.q.forward(ops, s.n, s.qkv.col_slice(0, inner));
  block.k.forward(ops, s.n, s.qkv.col_slice(inner, inner));
  block.v.forward(ops, s.n, s.qkv.col_slice(2 * inner, inner));
  ops.attention({.q = s.qkv.col_slice(0, inner),
                 .k = s.qkv.col_slice(inner, inner),
                 .v = s.qkv.col_slice(2 * inner, inner),
                 .heads = s.shape.heads,
                 .bias = s.bias,
                 .o = s.o});
  block.o.forward(ops, s.o, s.y);
  ops.copy(s.y, s.x, Accumulate::kYes);

  ops.rms_norm(s.x, block.mlp_norm, epsilon(s), s.n);
  block.wi_0.forward(ops, s.n, s.gate);
  block.wi_1.forward(ops, s.n, s.up);
  ops.activation(Activation::kGeluTanh, s.gate, s.up, s.gate);
  block.wo.forward(ops, s.gate, s.y);
  ops.copy(s.y, s.x, Accumulate::kYes);
}

void forward(Ops& ops, const State& s, const Final& final) { ops.rms_norm(s.x, final.norm, epsilon(s), s.output); }

template <class Part>
Stage make_stage(State& state, const std::string& id, Part part) {
  auto shared = std::make_shared<Part>(std::move(part));
  return {.id = id,
          .has_backward = false,
          .weights = [shared, &state](WeightVisitor& visitor) { weights(visitor, state, *shared); },
          .saved = [](Carver&) {},
          .forward = [shared, &state](Ops& ops, Pass) { forward(ops, state, *shared); },
          .backward = [](Ops&) {}};
}

}  // namespace

void layout(Carver& carver, State& s) {
  const std::int64_t heads = s.shape.heads;
  const std::int64_t inner = heads * s.shape.head_dim;
  const auto take = [&](std::int64_t cols) { return carver.take(s.activations, s.batch, s.length, cols); };
  s.x = take(s.shape.width);
  s.output = carver.take(DType::F32, s.batch, s.length, s.shape.width);
  s.bias = carver.take(DType::F32, heads, s.length, s.length);
  s.relative_rows = carver.take(DType::F32, 1, 2 * s.length - 1, heads);
  s.relative = carver.take(DType::F32, 1, heads, 2 * s.length - 1);
  s.n = take(s.shape.width);
  s.y = take(s.shape.width);
  s.qkv = take(3 * inner);
  s.o = take(inner);
  s.gate = take(s.shape.mlp_hidden);
  s.up = take(s.shape.mlp_hidden);
}

std::vector<Stage> stages(State& state) {
  std::vector<Stage> list;
  list.push_back(make_stage(state, "embed", Embed{}));
  for (std::int64_t i = 0; i < state.shape.layers; ++i) {
    list.push_back(make_stage(state, block_id(i), make_block(state.shape, i)));
  }
  list.push_back(make_stage(state, "final", Final{}));
  return list;
}

std::int32_t relative_bucket(const T5Shape& shape, std::int64_t relative) {
  const std::int64_t half = shape.buckets / 2;  // keys before the query, keys after it
  const std::int64_t exact = half / 2;          // distances with a bucket of their own; beyond, logarithmic
  const std::int64_t distance = std::abs(relative);
  std::int64_t bucket = distance;
  if (distance >= exact) {
    const double octaves = std::log(static_cast<double>(distance) / static_cast<double>(exact)) /
                           std::log(static_cast<double>(shape.max_distance) / static_cast<double>(exact));
    // Distances on a bucket's edge give whole numbers, which rounding must not push below the edge.
    constexpr double kRounding = 1e-9;
    const double steps = std::floor(octaves * static_cast<double>(half - exact) + kRounding);
    bucket = std::min(half - 1, exact + static_cast<std::int64_t>(steps));
  }
  return static_cast<std::int32_t>(bucket + (relative > 0 ? half : 0));
}

}  // namespace squareq::t5
