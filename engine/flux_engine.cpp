#include "engine/flux_engine.h"

#include <algorithm>

namespace squareq {

LoraSet adapters_of(const FluxRun& run, DType activations) {
  LoraMemory memory = run.lora_memory;
  memory.stacks = activations;
  return LoraSet(run.lora, memory);
}

flux::State flux_state(const Slab& slab, const FluxRun& run, std::size_t index, const LoraSet& lora,
                       DType activations) {
  const bool forward_only = index >= run.sequences.size();
  const Sequence& sequence =
      forward_only ? run.forward_only.at(index - run.sequences.size()).sequence : run.sequences[index];
  flux::State state{.shape = slab.flux_shape(),
                    .sequence = sequence,
                    .batch = run.batch,
                    .wanted = forward_only ? flux::Wanted{} : run.wanted,
                    .activations = activations};
  if (run.blocks_of_each_kind > 0) {
    state.shape.double_blocks = std::min(state.shape.double_blocks, run.blocks_of_each_kind);
    state.shape.single_blocks = std::min(state.shape.single_blocks, run.blocks_of_each_kind);
  }
  state.sigma.assign(static_cast<std::size_t>(run.batch), 0.0F);
  state.guidance.assign(static_cast<std::size_t>(run.batch), 1.0F);
  flux::prepare(state, lora);
  return state;
}

void flux_layout(Carver& carver, flux::State& state, LossInputs& loss) {
  flux::layout(carver, state);
  const View& prediction = state.prediction;
  loss.target = carver.take(prediction.dtype, prediction.batch, prediction.rows, prediction.cols);
  loss.weights = carver.take(DType::F32, prediction.batch, prediction.rows, 1);
}

FluxEngine::FluxEngine(Device& device, const Slab& slab, const FluxRun& run, WithoutMemory)
    : device_(device),
      store_(slab, device, run.residency),
      lora_(adapters_of(run, device.ops().activation_type())),
      keep_(run.keep),
      kept_(run.kept),
      with_backward_(run.sequences.size()),
      guests_(run.guests),
      shapes_(run.sequences.size() + run.forward_only.size()) {
  if (shapes_.empty()) throw std::logic_error("FluxEngine: no sequence");
  for (std::size_t i = 0; i < shapes_.size(); ++i) {
    flux::State& state = shapes_[i].state;
    state = flux_state(slab, run, i, lora_, device.ops().activation_type());
    rotary_table(state.sequence.positions, state.shape.axes, state.shape.theta, shapes_[i].cosine, shapes_[i].sine);
  }
}

ArenaBytes FluxEngine::measure(Device& device, const Slab& slab, const FluxRun& run) {
  FluxEngine engine(device, slab, run, WithoutMemory{});
  return measure_arena(device, engine.work());
}

FluxEngine::FluxEngine(Device& device, const Slab& slab, const FluxRun& run)
    : FluxEngine(device, slab, run, WithoutMemory{}) {
  arena_ = Arena(device_, work());
  arena_.use();
  plan_.emplace_back("scratch of the operations", arena_.scratch_bytes());
  std::vector<View> buffers{lora_.parameters(), lora_.gradients()};
  for (const auto& [name, view] : lora_.learnt()) buffers.push_back(view);
  for (const View& buffer : buffers) {
    const auto floats = static_cast<std::int64_t>((buffer.bytes() + 3) / 4);  // codes of 8 bits have room behind them
    if (floats > 0) device_.ops().fill(View(buffer.data, DType::F32, 1, 1, floats), 0.0F);
  }
  if (lora_.keep()) device_.ops().fill(lora_.keep(), 1.0F);
  select(0);
}

ArenaWork FluxEngine::work() {
  return {.layout = [this](Carver& carver) { layout(carver); }, .rehearse = [this](Ops& ops) { rehearse(ops); }};
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
  // Stages hold views of the adapters, so they are made after those have memory.
  for (std::size_t i = 0; i < shapes_.size(); ++i) {
    const Keep keep = i < with_backward_ ? keep_ : Keep::kNothing;
    shapes_[i].runner = std::make_unique<Runner>(device_, store_, flux::stages(shapes_[i].state, lora_), keep, kept_);
  }
  store_.layout(carver, shapes_.front().runner->stages());
  section("weights on the device");
  carver.take_alternatives(shapes_.size() + guests_.size(), [&](std::size_t i) {
    i < shapes_.size() ? layout(carver, shapes_[i]) : guests_[i - shapes_.size()].work.layout(carver);
  });
  section("activations, inputs and outputs of the largest shape");
}

void FluxEngine::layout(Carver& carver, Shape& shape) {
  flux_layout(carver, shape.state, shape.loss);
  shape.runner->layout(carver);
}

void FluxEngine::rehearse(Ops& ops) {
  for (Shape& shape : shapes_) {
    shape.runner->rehearse();
    const flux::State& state = shape.state;
    std::vector<float> values(static_cast<std::size_t>(state.batch));
    ops.flow_loss({.prediction = state.prediction,
                   .target = shape.loss.target,
                   .weight = shape.loss.weights,
                   .gradient_weight = values,
                   .loss = values,
                   .dprediction = state.dprediction});
  }
  if (lora_.trained_count() > 0) ops.sum_of_squares(lora_.gradients());
  for (const FluxRun::Guest& guest : guests_) guest.work.rehearse(ops);
}

void FluxEngine::select(std::size_t sequence) {
  selected_ = sequence;
  Shape& selected = shapes_.at(sequence);
  device_.upload(selected.cosine.data(), selected.state.cosine);
  device_.upload(selected.sine.data(), selected.state.sine);
}

void FluxEngine::set_sample(std::int64_t index, const Sample& sample) {
  flux::State& state = this->state();
  const auto upload = [&](std::span<const float> from, const View& to, const char* what) {
    if (static_cast<std::int64_t>(from.size()) != to.rows * to.cols) {
      throw std::logic_error(std::string("FluxEngine::set_sample: wrong size of ") + what);
    }
    device_.upload(from.data(), to.batch_slice(index, 1));
  };
  upload(sample.img, state.img, "img");
  upload(sample.txt, state.txt, "txt");
  upload(sample.y, state.y, "y");
  state.sigma.at(static_cast<std::size_t>(index)) = static_cast<float>(sample.sigma);
  state.guidance.at(static_cast<std::size_t>(index)) = static_cast<float>(sample.guidance);
}

std::vector<float> FluxEngine::prediction() {
  std::vector<float> values(static_cast<std::size_t>(state().prediction.count()));
  device_.download(state().prediction, values.data());
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
