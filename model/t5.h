// The T5 v1.1 encoder (Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text
// transformer", 2020; gated GELU, no biases, no attention scale) as stages of embedding, blocks and final norm.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/carver.h"
#include "kernels/base/shapes.h"
#include "model/stage.h"

namespace squareq::t5 {

struct State {
  T5Shape shape;
  std::int64_t batch = 0;
  std::int64_t length = 0;
  DType activations = DType::F32;

  std::vector<std::int32_t> ids;  // [B * L], padding included; every position attends to every other
  View x;                         // [B, L, width] residual stream
  View output;                    // [B, L, width] F32, after the last stage

  View bias;                     // [H, L, L] by relative position, computed by block 0, read by all
  View relative_rows, relative;  // [1, 2L - 1, H] and its transpose: the bias of key - query = -(L - 1) ... L - 1
  View n, y;                     // [B, L, width] scratch of a block
  View qkv;                      // [B, L, 3 H D]
  View o;                        // [B, L, H D]
  View gate, up;                 // [B, L, mlp_hidden]
};

// Carves everything above for state.shape, batch and length.
void layout(Carver& carver, State& state);

// Stage ids "embed", "encoder.block.i", "final"; tensor names as in the Hugging Face files. There is no backward.
// The stages refer to `state`, which must outlive them and be laid out before they run.
std::vector<Stage> stages(State& state);

// Row of the table of relative biases for key position - query position.
std::int32_t relative_bucket(const T5Shape& shape, std::int64_t relative);

}  // namespace squareq::t5
