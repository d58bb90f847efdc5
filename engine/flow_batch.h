// One batch of noisy latents and its loss: what training and evaluation share.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/flux_engine.h"
#include "engine/training_set.h"

namespace squareq {

struct FlowSample {
  const EncodedExample& example;
  std::span<const float> noise;  // as the latent
  double sigma = 0.0;
  double guidance = 1.0;
  double weight = 1.0;  // of its loss, beside that of the example
};

class FlowBatch {
 public:
  // Batches of the sequence that is selected in the engine at each call.
  explicit FlowBatch(FluxEngine& engine, LossKind kind = LossKind::kSquared, double huber_c = 0.1)
      : engine_(engine), kind_(kind), huber_c_(static_cast<float>(huber_c)) {}

  // Mixes the example's latent with the noise and puts it, its conditions and its target at place `slot`.
  void set(std::int64_t slot, const FlowSample& sample);

  // The loss of every sample times its weights. forward() runs the forward pass only; forward_backward() also the
  // backward pass of scale times the sum of these losses.
  std::vector<float> forward();
  std::vector<float> forward_backward(double scale);

 private:
  std::vector<float> loss(double scale, View dprediction);
  ConstView token_weights();

  FluxEngine& engine_;
  LossKind kind_;
  float huber_c_;
  std::vector<float> noisy_, velocity_;
  // Of the samples set, by slot.
  std::vector<double> weights_;
  std::vector<std::vector<float>> token_weights_;
};

}  // namespace squareq
