// What the two kinds of blocks share.
#pragma once

#include <cmath>
#include <span>

#include "model/flux/blocks.h"

namespace squareq::flux {

inline Linear make_linear(const LoraSet& lora, std::string name, std::int64_t out, std::int64_t in) {
  Linear linear{.name = std::move(name), .out = out, .in = in};
  linear.lora = lora.branches(linear.name);
  return linear;
}

inline AttentionSaved layout_attention(Carver& carver, const State& s) {
  const std::int64_t tokens = s.tokens();
  const std::int64_t h = s.hidden();
  const auto take = [&](std::int64_t cols) { return carver.take(s.activations, s.batch, tokens, cols); };
  AttentionSaved saved;
  saved.n1 = take(h);
  saved.z = take(3 * h + s.shape.mlp_hidden);
  saved.q = take(h);
  saved.k = take(h);
  saved.cat = take(h + s.shape.mlp_hidden);
  saved.log_sum_exp = carver.take(DType::F32, s.batch, s.shape.heads, tokens);
  return saved;
}

inline LastingAttention lasting_attention(Carver& carver, const State& s) {
  return {.o = carver.take(s.activations, s.batch, s.tokens(), s.hidden()),
          .log_sum_exp = carver.take(DType::F32, s.batch, s.shape.heads, s.tokens())};
}

// RMS norm and RoPE of the queries and keys of rows [begin, begin + rows).
inline void normalise_queries_keys(Ops& ops, const State& s, const AttentionSaved& a, ConstView query_norm,
                                   ConstView key_norm, std::int64_t begin, std::int64_t rows) {
  const std::int64_t h = s.hidden();
  const View z = a.z.row_slice(begin, rows);
  const ConstView cosine = s.cosine.row_slice(begin, rows);
  const ConstView sine = s.sine.row_slice(begin, rows);
  ops.norm_rope(
      {.x = z.col_slice(0, h), .gain = query_norm, .cosine = cosine, .sine = sine, .y = a.q.row_slice(begin, rows)});
  ops.norm_rope(
      {.x = z.col_slice(h, h), .gain = key_norm, .cosine = cosine, .sine = sine, .y = a.k.row_slice(begin, rows)});
}

// The same backwards, in place in the query and key columns of state.dz.
inline void normalise_queries_keys_backward(Ops& ops, const State& s, const AttentionSaved& a, ConstView query_norm,
                                            ConstView key_norm, std::int64_t begin, std::int64_t rows) {
  const std::int64_t h = s.hidden();
  for (const std::int64_t column : {std::int64_t{0}, h}) {
    const View d = s.dz.row_slice(begin, rows).col_slice(column, h);
    ops.norm_rope_backward({.dy = d,
                            .x = a.z.row_slice(begin, rows).col_slice(column, h),
                            .gain = column == 0 ? query_norm : key_norm,
                            .cosine = s.cosine.row_slice(begin, rows),
                            .sine = s.sine.row_slice(begin, rows),
                            .dx = d});
  }
}

inline float attention_scale(const State& s) { return 1.0F / std::sqrt(static_cast<float>(s.shape.head_dim)); }

inline void attend(Ops& ops, const State& s, const AttentionSaved& a, const LastingAttention& lasting, Pass pass) {
  const std::int64_t h = s.hidden();
  const View o = a.cat.col_slice(0, h);
  if (lasting.o && pass == Pass::kRecompute) {
    ops.copy(lasting.o, o, Accumulate::kNo);
    ops.copy(lasting.log_sum_exp, a.log_sum_exp, Accumulate::kNo);
    return;
  }
  ops.attention({.q = a.q,
                 .k = a.k,
                 .v = a.z.col_slice(2 * h, h),
                 .heads = s.shape.heads,
                 .scale = attention_scale(s),
                 .valid_keys = s.text_valid,
                 .masked_end = s.sequence.text,
                 .o = o,
                 .log_sum_exp = a.log_sum_exp});
  if (!lasting.o) return;
  ops.copy(o, lasting.o, Accumulate::kNo);
  ops.copy(a.log_sum_exp, lasting.log_sum_exp, Accumulate::kNo);
}

// Gradients of q, k and v into the first three columns of state.dz, from that of the attention output in state.dcat.
inline void attend_backward(Ops& ops, const State& s, const AttentionSaved& a) {
  const std::int64_t h = s.hidden();
  ops.attention_backward({.d_o = s.dcat.col_slice(0, h),
                          .q = a.q,
                          .k = a.k,
                          .v = a.z.col_slice(2 * h, h),
                          .o = a.cat.col_slice(0, h),
                          .log_sum_exp = a.log_sum_exp,
                          .heads = s.shape.heads,
                          .scale = attention_scale(s),
                          .valid_keys = s.text_valid,
                          .masked_end = s.sequence.text,
                          .dq = s.dz.col_slice(0, h),
                          .dk = s.dz.col_slice(h, h),
                          .dv = s.dz.col_slice(2 * h, h)});
}

// One stream's slice of the modulation outputs: chunk(k) is its k-th [B, 1, h].
struct Chunks {
  View values;     // from the first column on
  View gradients;  // empty if not wanted
  std::int64_t h = 0;

  View value(std::int64_t k) const { return values.col_slice(k * h, h); }
  View gradient(std::int64_t k) const { return gradients ? gradients.col_slice(k * h, h) : View{}; }
};

inline Chunks modulation_chunks(const State& s, std::int64_t column, std::int64_t chunks, bool gradient) {
  const std::int64_t width = chunks * s.hidden();
  return {.values = s.modulation.col_slice(column, width),
          .gradients = gradient ? s.dmodulation.col_slice(column, width) : View{},
          .h = s.hidden()};
}

}  // namespace squareq::flux
