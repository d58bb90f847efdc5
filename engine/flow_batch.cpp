#include "engine/flow_batch.h"

#include <algorithm>

#include "model/flow_match.h"

namespace squareq {

void FlowBatch::set(std::int64_t slot, const FlowSample& sample) {
  const EncodedExample& example = sample.example;
  noisy_.resize(example.latent.size());
  velocity_.resize(example.latent.size());
  mix_noise(example.latent, sample.noise, static_cast<float>(sample.sigma), noisy_);
  velocity_target(example.latent, sample.noise, velocity_);
  engine_.device().upload(velocity_.data(), engine_.target().batch_slice(slot, 1));
  engine_.set_sample(
      slot,
      {.img = noisy_, .txt = example.text, .y = example.pooled, .sigma = sample.sigma, .guidance = sample.guidance});
  const auto batch = static_cast<std::size_t>(engine_.state().batch);
  weights_.resize(batch, 1.0);
  token_weights_.resize(batch);
  weights_[static_cast<std::size_t>(slot)] = example.weight * sample.weight;
  token_weights_[static_cast<std::size_t>(slot)] = example.token_weights;
}

// Uploads the tokens' weights if one of the examples has any.
ConstView FlowBatch::token_weights() {
  const auto masked = [](const std::vector<float>& weights) { return !weights.empty(); };
  if (std::none_of(token_weights_.begin(), token_weights_.end(), masked)) return {};
  const View& view = engine_.loss_weights();
  for (std::size_t slot = 0; slot < token_weights_.size(); ++slot) {
    std::vector<float> weights = token_weights_[slot];
    weights.resize(static_cast<std::size_t>(view.rows), 1.0F);
    engine_.device().upload(weights.data(), view.batch_slice(static_cast<std::int64_t>(slot), 1));
  }
  return view;
}

std::vector<float> FlowBatch::loss(double scale, View dprediction) {
  engine_.forward();
  std::vector<float> loss(weights_.size());
  std::vector<float> weights;
  for (const double weight : weights_) weights.push_back(static_cast<float>(scale * weight));
  engine_.device().ops().flow_loss({.prediction = engine_.state().prediction,
                                    .target = engine_.target(),
                                    .weight = token_weights(),
                                    .kind = kind_,
                                    .huber_c = huber_c_,
                                    .gradient_weight = weights,
                                    .loss = loss,
                                    .dprediction = dprediction});
  for (std::size_t slot = 0; slot < loss.size(); ++slot) loss[slot] *= static_cast<float>(weights_[slot]);
  return loss;
}

std::vector<float> FlowBatch::forward() { return loss(0.0, {}); }

std::vector<float> FlowBatch::forward_backward(double scale) {
  std::vector<float> values = loss(scale, engine_.state().dprediction);
  engine_.backward();
  return values;
}

}  // namespace squareq
