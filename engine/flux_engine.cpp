#include "engine/flux_engine.h"

namespace squareq {

FluxEngine::FluxEngine(Device& device, const Slab& slab, FluxRun run)
    : device_(device), store_(slab, device), lora_(std::move(run.lora)), keep_(run.keep) {
  state_.shape = slab.flux_shape();
  state_.sequence = std::move(run.sequence);
  state_.batch = run.batch;
  state_.wanted = run.wanted;
  state_.sigma.assign(static_cast<std::size_t>(run.batch), 0.0F);
  state_.guidance.assign(static_cast<std::size_t>(run.batch), 1.0F);
  state_.activations = device.ops().activation_type();
  flux::prepare(state_, lora_);
  arena_ = Arena(
      device_, [&](Carver& carver) { layout(carver); }, [&](Ops& ops) { rehearse(ops); });
  arena_.use();
  plan_.emplace_back("scratch of the operations", arena_.scratch_bytes());

  std::vector<float> cosine;
  std::vector<float> sine;
  rotary_table(state_.sequence.positions, state_.shape.axes, state_.shape.theta, cosine, sine);
  device_.upload(cosine.data(), state_.cosine);
  device_.upload(sine.data(), state_.sine);
  Ops& ops = device_.ops();
  for (const View& buffer : {lora_.parameters(), lora_.gradients(), lora_.mean(), lora_.variance()}) {
    if (buffer.count() > 0) ops.fill(buffer, 0.0F);
  }
}

void FluxEngine::layout(Carver& carver) {
  plan_.clear();
  std::size_t before = 0;
  const auto section = [&](const char* purpose) {
    plan_.emplace_back(purpose, carver.used() - before);
    before = carver.used();
  };
  lora_.layout(carver);
  section("adapters, gradients and moments");
  flux::layout(carver, state_);
  section("residual stream, inputs and scratch");
  // Stages hold views of the adapters, so they are made after those have memory.
  runner_ = std::make_unique<Runner>(device_, store_, flux::stages(state_, lora_), keep_);
  runner_->layout(carver);
  section("weights on the device, activations of the stages");
}

void FluxEngine::rehearse(Ops& ops) {
  runner_->rehearse();
  std::vector<float> values(static_cast<std::size_t>(state_.batch));
  ops.squared_error(state_.prediction, state_.prediction, values, values, state_.dprediction);
  if (lora_.trained_count() > 0) ops.sum_of_squares(lora_.gradients());
}

void FluxEngine::set_sample(std::int64_t index, const Sample& sample) {
  const auto upload = [&](std::span<const float> from, const View& to, const char* what) {
    if (static_cast<std::int64_t>(from.size()) != to.rows * to.cols) {
      throw std::logic_error(std::string("FluxEngine::set_sample: wrong size of ") + what);
    }
    device_.upload(from.data(), to.batch_slice(index, 1));
  };
  upload(sample.img, state_.img, "img");
  upload(sample.txt, state_.txt, "txt");
  upload(sample.y, state_.y, "y");
  state_.sigma.at(static_cast<std::size_t>(index)) = static_cast<float>(sample.sigma);
  state_.guidance.at(static_cast<std::size_t>(index)) = static_cast<float>(sample.guidance);
}

std::vector<float> FluxEngine::prediction() {
  std::vector<float> values(static_cast<std::size_t>(state_.prediction.count()));
  device_.download(state_.prediction, values.data());
  return values;
}

void FluxEngine::initialise_lora(LoraInit init, std::uint64_t seed) {
  lora_.initialise(init, seed, [&](const std::vector<float>& from, const View& to) {
    if (!from.empty()) device_.upload(from.data(), to);
  });
}

void FluxEngine::zero_gradients() {
  if (lora_.trained_count() > 0) device_.ops().fill(lora_.gradients(), 0.0F);
}

}  // namespace squareq
