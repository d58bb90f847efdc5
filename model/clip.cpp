#include "model/clip.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "kernels/base/error.h"

namespace squareq::clip {
namespace {

Layer make_layer(const ClipShape& s, std::int64_t i) {
  const std::string prefix = "text_model.encoder.layers." + std::to_string(i) + ".";
  const auto linear = [&](const char* name, std::int64_t out, std::int64_t in) {
    return Linear{.name = prefix + name, .out = out, .in = in};
  };
  Layer layer;
  layer.q = linear("self_attn.q_proj", s.width, s.width);
  layer.k = linear("self_attn.k_proj", s.width, s.width);
  layer.v = linear("self_attn.v_proj", s.width, s.width);
  layer.out = linear("self_attn.out_proj", s.width, s.width);
  layer.fc1 = linear("mlp.fc1", s.mlp_hidden, s.width);
  layer.fc2 = linear("mlp.fc2", s.width, s.mlp_hidden);
  return layer;
}

void visit(WeightVisitor& visitor, const ClipShape& shape, const std::string& name, Norm& norm) {
  visitor.tensor(name + ".weight", norm.gain, 1, shape.width);
  visitor.tensor(name + ".bias", norm.bias, 1, shape.width);
}

void forward(Ops& ops, const ClipShape& shape, const Layer& layer, const Scratch& s) {
  const std::int64_t width = shape.width;
  const std::int64_t head_dim = width / shape.heads;
  const auto epsilon = static_cast<float>(shape.epsilon);
  const View q = s.qkv.col_slice(0, width);
  const View k = s.qkv.col_slice(width, width);
  const View v = s.qkv.col_slice(2 * width, width);
  ops.layer_norm(s.x, layer.norm1.gain, layer.norm1.bias, epsilon, s.n);
  layer.q.forward(ops, s.n, q);
  layer.k.forward(ops, s.n, k);
  layer.v.forward(ops, s.n, v);
  ops.attention({.q = q,
                 .k = k,
                 .v = v,
                 .heads = shape.heads,
                 .scale = 1.0F / std::sqrt(static_cast<float>(head_dim)),
                 .causal = true,
                 .o = s.o});
  layer.out.forward(ops, s.o, s.y);
  ops.copy(s.y, s.x, Accumulate::kYes);

  ops.layer_norm(s.x, layer.norm2.gain, layer.norm2.bias, epsilon, s.n);
  layer.fc1.forward(ops, s.n, s.hidden);
  ops.activation(Activation::kQuickGelu, s.hidden, {}, s.hidden);
  layer.fc2.forward(ops, s.hidden, s.y);
  ops.copy(s.y, s.x, Accumulate::kYes);
}

}  // namespace

void weights(WeightVisitor& visitor, const ClipShape& shape, Weights& w) {
  if (w.layers.empty()) {
    for (std::int64_t i = 0; i < shape.layers; ++i) w.layers.push_back(make_layer(shape, i));
  }
  visitor.tensor("text_model.embeddings.token_embedding.weight", w.token_embedding, shape.vocab, shape.width);
  visitor.tensor("text_model.embeddings.position_embedding.weight", w.position_embedding, shape.positions, shape.width);
  for (std::size_t i = 0; i < w.layers.size(); ++i) {
    Layer& layer = w.layers[i];
    const std::string prefix = "text_model.encoder.layers." + std::to_string(i) + ".";
    visit(visitor, shape, prefix + "layer_norm1", layer.norm1);
    for (Linear* linear : {&layer.q, &layer.k, &layer.v, &layer.out}) linear->visit(visitor);
    visit(visitor, shape, prefix + "layer_norm2", layer.norm2);
    for (Linear* linear : {&layer.fc1, &layer.fc2}) linear->visit(visitor);
  }
  visit(visitor, shape, "text_model.final_layer_norm", w.final_norm);
}

void layout(Carver& carver, const ClipShape& shape, DType activations, std::int64_t batch, std::int64_t length,
            Scratch& s) {
  const auto take = [&](std::int64_t cols) { return carver.take(activations, batch, length, cols); };
  s.x = take(shape.width);
  s.n = take(shape.width);
  s.y = take(shape.width);
  s.o = take(shape.width);
  s.qkv = take(3 * shape.width);
  s.hidden = take(shape.mlp_hidden);
}

void forward(Ops& ops, const ClipShape& shape, const Weights& w, std::span<const std::int32_t> ids, const Scratch& s,
             View last_hidden, View pooled) {
  const std::int64_t length = s.x.rows;
  ops.gather(w.token_embedding, ids, s.x);
  for (std::int64_t b = 0; b < s.x.batch; ++b) {
    ops.copy(w.position_embedding.row_slice(0, length), s.x.batch_slice(b, 1), Accumulate::kYes);
  }
  for (const Layer& layer : w.layers) forward(ops, shape, layer, s);
  ops.layer_norm(s.x, w.final_norm.gain, w.final_norm.bias, static_cast<float>(shape.epsilon), last_hidden);
  for (std::int64_t b = 0; b < s.x.batch; ++b) {
    const auto prompt = ids.subspan(static_cast<std::size_t>(b * length), static_cast<std::size_t>(length));
    ops.copy(last_hidden.batch_slice(b, 1).row_slice(end_position(shape, prompt), 1), pooled.batch_slice(b, 1),
             Accumulate::kNo);
  }
}

std::int64_t end_position(const ClipShape& shape, std::span<const std::int32_t> ids) {
  const auto end = shape.eos < 0
                       ? std::max_element(ids.begin(), ids.end())
                       : std::find_if(ids.begin(), ids.end(), [&](std::int32_t id) { return id == shape.eos; });
  if (end == ids.end()) {
    throw FormatError({.where = "token ids of CLIP",
                       .found = "no end token",
                       .expected = "the id " + std::to_string(shape.eos),
                       .advice = "check that tokenizer and text encoder belong together"});
  }
  return end - ids.begin();
}

}  // namespace squareq::clip
