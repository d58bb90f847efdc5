// One batch of noisy latents and its loss: what training and evaluation share.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/flux_engine.h"
#include "engine/training_set.h"

namespace squareq {

class FlowBatch {
 public:
  // Batches of the sequence that is selected in the engine at each call.
  explicit FlowBatch(FluxEngine& engine) : engine_(engine) {}

  // Mixes the example's latent with the noise and puts it, its conditions and its target at place `slot`.
  void set(std::int64_t slot, const EncodedExample& example, std::span<const float> noise, double sigma,
           double guidance);

  // Loss of the velocity for every sample, times the example's weight. forward() runs the forward pass only;
  // forward_backward() also the backward pass of gradient_weight times the sum of these losses.
  std::vector<float> forward();
  std::vector<float> forward_backward(float gradient_weight);

 private:
  std::vector<float> loss(float gradient_weight, View dprediction);
  ConstView token_weights();

  FluxEngine& engine_;
  std::vector<float> noisy_, velocity_;
  // Of the examples set, by slot.
  std::vector<double> weights_;
  std::vector<std::vector<float>> token_weights_;
};

}  // namespace squareq
