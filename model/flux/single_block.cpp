#include "model/flux/blocks_common.h"

namespace squareq::flux {
namespace {

// Chunks: shift, scale, gate.
Chunks chunks_of(const State& s, const SingleBlock& block) {
  return modulation_chunks(s, block.modulation, 3, block.modulation_gradient);
}

}  // namespace

SingleBlock make_single_block(const State& s, const LoraSet& lora, std::int64_t i) {
  const std::int64_t h = s.hidden();
  const std::int64_t mlp = s.shape.mlp_hidden;
  const std::string prefix = "single_blocks." + std::to_string(i) + ".";
  SingleBlock block{.index = s.shape.double_blocks + i, .modulation = s.single_modulation(i)};
  block.linear1 = make_linear(lora, prefix + "linear1", 3 * h + mlp, h);
  block.linear2 = make_linear(lora, prefix + "linear2", h, h + mlp);
  block.modulation_gradient = s.vec_gradient || lora.trains(prefix + "modulation.lin");
  return block;
}

void weights(WeightVisitor& visitor, const State& s, SingleBlock& block) {
  const std::string norm = block.linear1.name.substr(0, block.linear1.name.rfind('.')) + ".norm.";
  block.linear1.visit(visitor);
  visitor.tensor(norm + "query_norm.scale", block.query_norm, 1, s.shape.head_dim);
  visitor.tensor(norm + "key_norm.scale", block.key_norm, 1, s.shape.head_dim);
  block.linear2.visit(visitor);
}

void layout(Carver& carver, const State& s, SingleBlock& block) {
  block.saved = layout_attention(carver, s);
  if (block.modulation_gradient) block.y = carver.take(s.activations, s.batch, s.tokens(), s.hidden());
}

void lasting_layout(Carver& carver, const State& s, SingleBlock& block, bool attention) {
  block.lasting = attention ? lasting_attention(carver, s) : LastingAttention{};
  for (Linear* linear : {&block.linear1, &block.linear2}) {
    linear->layout(carver, s.activations, s.batch, s.tokens());
  }
}

void forward(Ops& ops, const State& s, const SingleBlock& block, Pass pass) {
  const std::int64_t h = s.hidden();
  const AttentionSaved& a = block.saved;
  const View x = s.x[static_cast<std::size_t>(block.index)];
  const Chunks mod = chunks_of(s, block);
  const bool again = pass == Pass::kRecompute;  // then nobody reads the block's output
  ops.modulated_norm({.x = x, .scale = mod.value(1), .shift = mod.value(0), .y = a.n1});
  ops.linear({.x = a.n1,
              .weight = block.linear1.weight,
              .lora = block.linear1.lora,
              .u = block.linear1.u,
              .u_known = again,
              .y = a.z,
              .act = a.cat.col_slice(h, s.shape.mlp_hidden),
              .gelu_begin = 3 * h});
  normalise_queries_keys(ops, s, a, block.query_norm, block.key_norm, 0, s.tokens());
  attend(ops, s, a, block.lasting, pass);
  ops.linear({.x = a.cat,
              .weight = block.linear2.weight,
              .lora = block.linear2.lora,
              .u = block.linear2.u,
              .u_known = again,
              .y = block.y,
              .gate = again ? View{} : mod.value(2),
              .residual = again ? View{} : x,
              .sum = again ? View{} : s.x[static_cast<std::size_t>(block.index) + 1]});
}

void backward(Ops& ops, const State& s, const SingleBlock& block) {
  const std::int64_t h = s.hidden();
  const std::int64_t mlp = s.shape.mlp_hidden;
  const AttentionSaved& a = block.saved;
  const Chunks mod = chunks_of(s, block);
  ops.gate_backward(s.dx, mod.value(2), block.y, s.dn, mod.gradient(2));
  block.linear2.backward(ops, s.dn, a.cat, s.dcat);
  attend_backward(ops, s, a);
  normalise_queries_keys_backward(ops, s, a, block.query_norm, block.key_norm, 0, s.tokens());
  ops.activation_backward(Activation::kGeluTanh, s.dcat.col_slice(h, mlp), a.z.col_slice(3 * h, mlp),
                          s.dz.col_slice(3 * h, mlp), Accumulate::kNo);
  const bool through = block.input_gradient || block.modulation_gradient;
  block.linear1.backward(ops, s.dz, a.n1, through ? s.dn : View{});
  if (!through) return;
  ops.modulated_norm_backward({.dy = s.dn,
                               .x = s.x[static_cast<std::size_t>(block.index)],
                               .scale = mod.value(1),
                               .dx = block.input_gradient ? s.dx : View{},
                               .accumulate = Accumulate::kYes,
                               .dscale = mod.gradient(1),
                               .dshift = mod.gradient(0)});
}

}  // namespace squareq::flux
