// The text model of CLIP (Radford et al., "Learning transferable visual models from natural language supervision",
// 2021): causal transformer whose state at the end token stands for the whole prompt.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/carver.h"
#include "kernels/base/shapes.h"
#include "model/linear.h"

namespace squareq::clip {

struct Norm {
  ConstView gain, bias;  // [1, 1, width]
};

struct Layer {
  Norm norm1, norm2;
  Linear q, k, v, out, fc1, fc2;
};

struct Weights {
  ConstView token_embedding;     // [1, vocab, width]
  ConstView position_embedding;  // [1, positions, width]
  std::vector<Layer> layers;
  Norm final_norm;
};

// Builds the layers on the first visit; tensor names as in the Hugging Face files, with the prefix "text_model.".
void weights(WeightVisitor& visitor, const ClipShape& shape, Weights& weights);

struct Scratch {
  View x, n, y, o;  // [B, T, width]
  View qkv;         // [B, T, 3 width]
  View hidden;      // [B, T, mlp_hidden]
};

void layout(Carver& carver, const ClipShape& shape, DType activations, std::int64_t batch, std::int64_t length,
            Scratch& scratch);

// ids [B * T], T <= shape.positions, padding included (it is not masked). last_hidden [B, T, width] is the state
// after the final norm, pooled [B, 1, width] its row at the end token (see end_position).
void forward(Ops& ops, const ClipShape& shape, const Weights& weights, std::span<const std::int32_t> ids,
             const Scratch& scratch, View last_hidden, View pooled);

// The first position of shape.eos in one prompt's ids or, if shape.eos is -1, of the largest id. Throws FormatError
// if there is none.
std::int64_t end_position(const ClipShape& shape, std::span<const std::int32_t> ids);

}  // namespace squareq::clip
