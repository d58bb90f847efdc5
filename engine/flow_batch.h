// One batch of noisy latents and its loss: what training and evaluation share.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/flux_engine.h"

namespace squareq {

// One picture with its caption, ready for the transformer.
struct EncodedExample {
  std::vector<float> latent;  // packed [tokens, 4 z], normalised
  std::vector<float> text;    // T5 states [text tokens, width]
  std::vector<float> pooled;  // CLIP state
};

struct TrainingSet {
  std::vector<EncodedExample> examples;
  Grid grid;  // of every latent
  std::int64_t text_tokens = 0;
};

class FlowBatch {
 public:
  // Batches of the sequence that is selected in the engine at each call.
  explicit FlowBatch(FluxEngine& engine) : engine_(engine) {}

  // Mixes the example's latent with the noise and puts it, its conditions and its target at place `slot`.
  void set(std::int64_t slot, const EncodedExample& example, std::span<const float> noise, double sigma,
           double guidance);

  // Mean squared error of the velocity for every sample. forward() runs the forward pass only; forward_backward() also
  // the backward pass of gradient_weight times the sum of these losses.
  std::vector<float> forward();
  std::vector<float> forward_backward(float gradient_weight);

 private:
  std::vector<float> loss(float gradient_weight, View dprediction);

  FluxEngine& engine_;
  std::vector<float> noisy_, velocity_;
};

}  // namespace squareq
