#include "engine/flow_batch.h"

#include "model/flow_match.h"

namespace squareq {

FlowBatch::FlowBatch(FluxEngine& engine) : engine_(engine) {
  const View& prediction = engine.state().prediction;
  memory_ = engine.device().allocate(prediction.bytes());
  target_ = View(memory_.get(), DType::F32, prediction.batch, prediction.rows, prediction.cols);
  noisy_.resize(static_cast<std::size_t>(prediction.rows * prediction.cols));
  velocity_.resize(noisy_.size());
}

void FlowBatch::set(std::int64_t slot, const EncodedExample& example, std::span<const float> noise, double sigma,
                    double guidance) {
  mix_noise(example.latent, noise, static_cast<float>(sigma), noisy_);
  velocity_target(example.latent, noise, velocity_);
  engine_.device().upload(velocity_.data(), target_.batch_slice(slot, 1));
  engine_.set_sample(slot,
                     {.img = noisy_, .txt = example.text, .y = example.pooled, .sigma = sigma, .guidance = guidance});
}

std::vector<float> FlowBatch::loss(float gradient_weight, View dprediction) {
  engine_.forward();
  std::vector<float> loss(static_cast<std::size_t>(target_.batch));
  const std::vector<float> weights(loss.size(), gradient_weight);
  engine_.device().ops().squared_error(engine_.state().prediction, target_, weights, loss, dprediction);
  return loss;
}

std::vector<float> FlowBatch::forward() { return loss(0.0F, {}); }

std::vector<float> FlowBatch::forward_backward(float gradient_weight) {
  std::vector<float> values = loss(gradient_weight, engine_.state().dprediction);
  engine_.backward();
  return values;
}

}  // namespace squareq
