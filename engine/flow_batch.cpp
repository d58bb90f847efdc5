#include "engine/flow_batch.h"

#include "model/flow_match.h"

namespace squareq {

void FlowBatch::set(std::int64_t slot, const EncodedExample& example, std::span<const float> noise, double sigma,
                    double guidance) {
  noisy_.resize(example.latent.size());
  velocity_.resize(example.latent.size());
  mix_noise(example.latent, noise, static_cast<float>(sigma), noisy_);
  velocity_target(example.latent, noise, velocity_);
  engine_.device().upload(velocity_.data(), engine_.target().batch_slice(slot, 1));
  engine_.set_sample(slot,
                     {.img = noisy_, .txt = example.text, .y = example.pooled, .sigma = sigma, .guidance = guidance});
}

std::vector<float> FlowBatch::loss(float gradient_weight, View dprediction) {
  engine_.forward();
  std::vector<float> loss(static_cast<std::size_t>(engine_.state().batch));
  const std::vector<float> weights(loss.size(), gradient_weight);
  engine_.device().ops().flow_loss({.prediction = engine_.state().prediction,
                                    .target = engine_.target(),
                                    .gradient_weight = weights,
                                    .loss = loss,
                                    .dprediction = dprediction});
  return loss;
}

std::vector<float> FlowBatch::forward() { return loss(0.0F, {}); }

std::vector<float> FlowBatch::forward_backward(float gradient_weight) {
  std::vector<float> values = loss(gradient_weight, engine_.state().dprediction);
  engine_.backward();
  return values;
}

}  // namespace squareq
