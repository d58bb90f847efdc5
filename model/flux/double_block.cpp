#include "model/flux/blocks_common.h"

namespace squareq::flux {
namespace {

struct Rows {
  std::int64_t begin;
  std::int64_t count;
};

// Token range of a stream: text comes first in the joint sequence.
Rows rows_of(const State& s, std::size_t stream) {
  const std::int64_t text = s.sequence.text;
  return stream == 0 ? Rows{text, s.tokens() - text} : Rows{0, text};
}

// Chunks of a stream: shift1, scale1, gate1, shift2, scale2, gate2.
Chunks chunks_of(const State& s, const DoubleBlock& block, std::size_t stream) {
  const std::int64_t column = block.modulation + static_cast<std::int64_t>(stream) * 6 * s.hidden();
  return modulation_chunks(s, column, 6, block.modulation_gradient);
}

}  // namespace

DoubleBlock make_double_block(const State& s, const LoraSet& lora, std::int64_t i) {
  const std::int64_t h = s.hidden();
  const std::int64_t mlp = s.shape.mlp_hidden;
  const std::string prefix = "double_blocks." + std::to_string(i) + ".";
  DoubleBlock block{.index = i, .modulation = s.double_modulation(i)};
  const std::array<std::string, 2> names{prefix + "img_", prefix + "txt_"};
  for (std::size_t stream = 0; stream < 2; ++stream) {
    block.streams[stream].qkv = make_linear(lora, names[stream] + "attn.qkv", 3 * h, h);
    block.streams[stream].proj = make_linear(lora, names[stream] + "attn.proj", h, h);
    block.streams[stream].mlp0 = make_linear(lora, names[stream] + "mlp.0", mlp, h);
    block.streams[stream].mlp2 = make_linear(lora, names[stream] + "mlp.2", h, mlp);
    block.modulation_gradient |= s.vec_gradient || lora.trains(names[stream] + "mod.lin");
  }
  return block;
}

void weights(WeightVisitor& visitor, const State& s, DoubleBlock& block) {
  for (DoubleBlock::Stream& stream : block.streams) {
    const std::string norm = stream.qkv.name.substr(0, stream.qkv.name.rfind('.')) + ".norm.";
    stream.qkv.visit(visitor);
    visitor.tensor(norm + "query_norm.scale", stream.query_norm, 1, s.shape.head_dim);
    visitor.tensor(norm + "key_norm.scale", stream.key_norm, 1, s.shape.head_dim);
    stream.proj.visit(visitor);
    stream.mlp0.visit(visitor);
    stream.mlp2.visit(visitor);
  }
}

void layout(Carver& carver, const State& s, DoubleBlock& block) {
  const std::int64_t h = s.hidden();
  block.saved = layout_attention(carver, s);
  block.mid = carver.take(s.activations, s.batch, s.tokens(), h);
  block.n2 = carver.take(s.activations, s.batch, s.tokens(), h);
  for (std::size_t i = 0; i < 2; ++i) {
    DoubleBlock::Stream& stream = block.streams[i];
    const std::int64_t rows = rows_of(s, i).count;
    if (block.modulation_gradient) {
      stream.y1 = carver.take(s.activations, s.batch, rows, h);
      stream.y2 = carver.take(s.activations, s.batch, rows, h);
    }
  }
}

void lasting_layout(Carver& carver, const State& s, DoubleBlock& block, bool attention) {
  block.lasting = attention ? lasting_attention(carver, s) : LastingAttention{};
  for (std::size_t i = 0; i < 2; ++i) {
    DoubleBlock::Stream& stream = block.streams[i];
    for (Linear* linear : {&stream.qkv, &stream.proj, &stream.mlp0, &stream.mlp2}) {
      linear->layout(carver, s.activations, s.batch, rows_of(s, i).count);
    }
  }
}

void forward(Ops& ops, const State& s, const DoubleBlock& block, Pass pass) {
  const std::int64_t h = s.hidden();
  const std::int64_t mlp = s.shape.mlp_hidden;
  const AttentionSaved& a = block.saved;
  const View x = s.x[static_cast<std::size_t>(block.index)];
  const View x_out = s.x[static_cast<std::size_t>(block.index) + 1];
  const bool again = pass == Pass::kRecompute;  // then nobody reads x_out

  for (std::size_t i = 0; i < 2; ++i) {
    const DoubleBlock::Stream& stream = block.streams[i];
    const auto [begin, rows] = rows_of(s, i);
    const Chunks mod = chunks_of(s, block, i);
    const View n1 = a.n1.row_slice(begin, rows);
    ops.modulated_norm({.x = x.row_slice(begin, rows), .scale = mod.value(1), .shift = mod.value(0), .y = n1});
    stream.qkv.forward(ops, n1, a.z.row_slice(begin, rows).col_slice(0, 3 * h), pass);
    normalise_queries_keys(ops, s, a, stream.query_norm, stream.key_norm, begin, rows);
  }
  attend(ops, s, a, block.lasting, pass);
  for (std::size_t i = 0; i < 2; ++i) {
    const DoubleBlock::Stream& stream = block.streams[i];
    const auto [begin, rows] = rows_of(s, i);
    const Chunks mod = chunks_of(s, block, i);
    const View mid = block.mid.row_slice(begin, rows);
    const View n2 = block.n2.row_slice(begin, rows);
    const View cat = a.cat.row_slice(begin, rows);
    ops.linear({.x = cat.col_slice(0, h),
                .weight = stream.proj.weight,
                .lora = stream.proj.lora,
                .u = stream.proj.u,
                .u_known = again,
                .y = stream.y1,
                .gate = mod.value(2),
                .residual = x.row_slice(begin, rows),
                .sum = mid});
    ops.modulated_norm({.x = mid, .scale = mod.value(4), .shift = mod.value(3), .y = n2});
    ops.linear({.x = n2,
                .weight = stream.mlp0.weight,
                .lora = stream.mlp0.lora,
                .u = stream.mlp0.u,
                .u_known = again,
                .y = a.z.row_slice(begin, rows).col_slice(3 * h, mlp),
                .act = cat.col_slice(h, mlp)});
    ops.linear({.x = cat.col_slice(h, mlp),
                .weight = stream.mlp2.weight,
                .lora = stream.mlp2.lora,
                .u = stream.mlp2.u,
                .u_known = again,
                .y = stream.y2,
                .gate = again ? View{} : mod.value(5),
                .residual = again ? View{} : mid,
                .sum = again ? View{} : x_out.row_slice(begin, rows)});
  }
}

void backward(Ops& ops, const State& s, const DoubleBlock& block) {
  const std::int64_t h = s.hidden();
  const std::int64_t mlp = s.shape.mlp_hidden;
  const AttentionSaved& a = block.saved;
  for (std::size_t i = 0; i < 2; ++i) {
    const DoubleBlock::Stream& stream = block.streams[i];
    const auto [begin, rows] = rows_of(s, i);
    const Chunks mod = chunks_of(s, block, i);
    const View dx = s.dx.row_slice(begin, rows);
    const View dn = s.dn.row_slice(begin, rows);
    const View dcat = s.dcat.row_slice(begin, rows);
    const View dp = s.dz.row_slice(begin, rows).col_slice(3 * h, mlp);
    ops.gate_backward(dx, mod.value(5), stream.y2, dn, mod.gradient(5));
    stream.mlp2.backward(ops, dn, a.cat.row_slice(begin, rows).col_slice(h, mlp), dcat.col_slice(h, mlp));
    ops.activation_backward(Activation::kGeluTanh, dcat.col_slice(h, mlp),
                            a.z.row_slice(begin, rows).col_slice(3 * h, mlp), dp, Accumulate::kNo);
    stream.mlp0.backward(ops, dp, block.n2.row_slice(begin, rows), dn);
    ops.modulated_norm_backward({.dy = dn,
                                 .x = block.mid.row_slice(begin, rows),
                                 .scale = mod.value(4),
                                 .dx = dx,
                                 .accumulate = Accumulate::kYes,
                                 .dscale = mod.gradient(4),
                                 .dshift = mod.gradient(3)});
    ops.gate_backward(dx, mod.value(2), stream.y1, dn, mod.gradient(2));
    stream.proj.backward(ops, dn, a.cat.row_slice(begin, rows).col_slice(0, h), dcat.col_slice(0, h));
  }
  attend_backward(ops, s, a);
  for (std::size_t i = 0; i < 2; ++i) {
    const DoubleBlock::Stream& stream = block.streams[i];
    const auto [begin, rows] = rows_of(s, i);
    const Chunks mod = chunks_of(s, block, i);
    const bool through = block.input_gradient || block.modulation_gradient;
    const View dn = through ? s.dn.row_slice(begin, rows) : View{};
    normalise_queries_keys_backward(ops, s, a, stream.query_norm, stream.key_norm, begin, rows);
    stream.qkv.backward(ops, s.dz.row_slice(begin, rows).col_slice(0, 3 * h), a.n1.row_slice(begin, rows), dn);
    if (!through) continue;
    ops.modulated_norm_backward({.dy = dn,
                                 .x = s.x[static_cast<std::size_t>(block.index)].row_slice(begin, rows),
                                 .scale = mod.value(1),
                                 .dx = block.input_gradient ? s.dx.row_slice(begin, rows) : View{},
                                 .accumulate = Accumulate::kYes,
                                 .dscale = mod.gradient(1),
                                 .dshift = mod.gradient(0)});
  }
}

}  // namespace squareq::flux
