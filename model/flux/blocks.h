// The two kinds of transformer blocks: plain data, one forward, one backward. Architecture: Black Forest Labs' FLUX.1
// (github.com/black-forest-labs/flux, flux/modules/layers.py).
#pragma once

#include <array>
#include <string>

#include "model/flux/state.h"
#include "model/linear.h"

namespace squareq::flux {

// Both blocks save the same things, for all tokens at once: a double block's streams are row slices.
struct AttentionSaved {
  View n1;           // [B, L, h] normalised and modulated input
  View z;            // [B, L, 3h + mlp] q, k, v and MLP before GELU
  View q, k;         // [B, L, h] after RMS norm and RoPE
  View cat;          // [B, L, h + mlp] attention output and MLP after GELU
  View log_sum_exp;  // [B, H, L]
};

// Copies of the results of attention that last until a recomputation, or nothing.
struct LastingAttention {
  View o;            // [B, L, h]
  View log_sum_exp;  // [B, H, L]
};

struct DoubleBlock {
  struct Stream {
    Linear qkv, proj, mlp0, mlp2;
    ConstView query_norm, key_norm;  // [1, 1, D]
    View y1, y2;                     // outputs before the gates; saved only if the gates need gradients
  };
  std::int64_t index = 0;       // among all blocks: reads x[index], writes x[index + 1]
  std::int64_t modulation = 0;  // first column of its modulation outputs: img, then txt
  bool modulation_gradient = false;
  bool input_gradient = true;     // does anything below this block need a gradient?
  std::array<Stream, 2> streams;  // img, txt
  AttentionSaved saved;
  LastingAttention lasting;
  View mid;  // [B, L, h] after the attention residual
  View n2;   // [B, L, h] normalised and modulated again
};

struct SingleBlock {
  std::int64_t index = 0;
  std::int64_t modulation = 0;
  bool modulation_gradient = false;
  bool input_gradient = true;
  Linear linear1, linear2;
  ConstView query_norm, key_norm;
  AttentionSaved saved;
  LastingAttention lasting;
  View y;  // output before the gate; saved only if the gate needs a gradient
};

DoubleBlock make_double_block(const State& state, const LoraSet& lora, std::int64_t i);
SingleBlock make_single_block(const State& state, const LoraSet& lora, std::int64_t i);

void weights(WeightVisitor& visitor, const State& state, DoubleBlock& block);
void weights(WeightVisitor& visitor, const State& state, SingleBlock& block);

void layout(Carver& carver, const State& state, DoubleBlock& block);
void layout(Carver& carver, const State& state, SingleBlock& block);
// What the adapters save, and with `attention` what attention gives.
void lasting_layout(Carver& carver, const State& state, DoubleBlock& block, bool attention);
void lasting_layout(Carver& carver, const State& state, SingleBlock& block, bool attention);

// x[index + 1] = block(x[index]); a recomputation skips that last product, and attention if its results lasted.
void forward(Ops& ops, const State& state, const DoubleBlock& block, Pass pass);
void forward(Ops& ops, const State& state, const SingleBlock& block, Pass pass);

// state.dx: in, the gradient of the block's output; out, of its input. Adapter gradients accumulate, gradients of the
// modulation outputs are written.
void backward(Ops& ops, const State& state, const DoubleBlock& block);
void backward(Ops& ops, const State& state, const SingleBlock& block);

}  // namespace squareq::flux
