// What the stages of one FLUX forward and backward share: inputs, conditioning, the residual stream and gradients.
// `vec` is the conditioning vector, `img` and `txt` the two streams, as in the original code.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/carver.h"
#include "kernels/base/shapes.h"
#include "model/lora.h"
#include "model/sequence.h"

namespace squareq::flux {

// What is to be differentiated beside the adapters. Adapters decide the rest.
struct Wanted {
  bool gradients = false;        // training; false: forward only
  bool input_gradients = false;  // also with respect to img, txt and y (tests, training of text encoders)
};

struct State {
  FluxShape shape;
  Sequence sequence;
  std::int64_t batch = 0;
  Wanted wanted;
  DType activations = DType::F32;  // of tensors with a row for each token
  // Derived from the adapters: does any gradient flow into modulation outputs, and into vec?
  bool vec_gradient = false;

  // Inputs
  View img;                              // [B, image + reference, in_channels]
  View txt;                              // [B, text, context_in]
  View y;                                // [B, 1, vector_in]
  std::vector<float> sigma;              // [B] noise level in [0, 1]
  std::vector<float> guidance;           // [B]
  std::vector<std::int64_t> text_valid;  // [B] text tokens to attend to, or empty: all of them
  View cosine, sine;                     // [1, L, D / 2]

  // Forward
  View vec, silu_vec;   // [B, 1, h]
  View modulation;      // [B, 1, m] of all blocks
  std::vector<View> x;  // [B, L, h]: x[i] enters block i, the last one enters the final layer
  View prediction;      // [B, output, out_channels]

  // Backward
  View dprediction;     // as prediction
  View dx;              // [B, L, h]: on the way down, the gradient of the residual stream
  View dmodulation;     // as modulation
  View dsilu_vec;       // [B, 1, h]
  View dimg, dtxt, dy;  // as img, txt, y if wanted
  // Scratch of a block's backward, shared by all blocks; the columns are as in the single block's linears.
  View dz;    // [B, L, 3h + mlp]
  View dcat;  // [B, L, h + mlp]
  View dn;    // [B, L, h]

  std::int64_t hidden() const { return shape.hidden; }
  std::int64_t tokens() const { return sequence.total(); }
  std::int64_t blocks() const { return shape.double_blocks + shape.single_blocks; }
  // First column of the modulation outputs of double block i (img, then txt) and of single block i.
  std::int64_t double_modulation(std::int64_t i) const { return 12 * hidden() * i; }
  std::int64_t single_modulation(std::int64_t i) const {
    return 12 * hidden() * shape.double_blocks + 3 * hidden() * i;
  }
  std::int64_t modulation_width() const { return single_modulation(shape.single_blocks); }
};

// Carves everything above. Without gradients the residual stream alternates between two buffers.
void layout(Carver& carver, State& state);

}  // namespace squareq::flux
