#include "engine/flux_engine.h"

namespace squareq {

FluxEngine::FluxEngine(Device& device, const Slab& slab, FluxRun run)
    : device_(device), store_(slab), lora_(std::move(run.lora)), keep_(run.keep) {
  state_.shape = slab.flux_shape();
  state_.sequence = std::move(run.sequence);
  state_.batch = run.batch;
  state_.wanted = run.wanted;
  state_.sigma.assign(static_cast<std::size_t>(run.batch), 0.0F);
  state_.guidance.assign(static_cast<std::size_t>(run.batch), 1.0F);
  flux::prepare(state_, lora_);

  Carver measure;
  layout(measure);
  arena_ = device_.allocate(measure.used());
  plan_.clear();
  Carver carver(arena_.get(), measure.used());
  layout(carver);

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
  runner_ = std::make_unique<Runner>(device_.ops(), store_, flux::stages(state_, lora_), keep_);
  runner_->layout(carver);
  section("activations of the stages");
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

void FluxEngine::zero_gradients() {
  if (lora_.trained_count() > 0) device_.ops().fill(lora_.gradients(), 0.0F);
}

}  // namespace squareq
