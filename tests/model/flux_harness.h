// A small FLUX transformer held in memory: its stages, run without an engine.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/random.h"
#include "kernels/ops.h"
#include "model/flux/transformer.h"
#include "tests/support_spec_weights.h"

namespace squareq::test {

// Weights by the deterministic rule of support_spec_weights.h: linears 1 / sqrt(in), biases 0.1.
class SpecWeights : public WeightVisitor {
 public:
  void linear(const std::string& name, Weight& slot, std::int64_t out, std::int64_t in, bool bias) override {
    slot = {};
    slot.values = view(name + ".weight", out, in, spec_values(name + ".weight", out * in, 1.0 / std::sqrt(in)));
    if (bias) slot.bias = view(name + ".bias", 1, out, spec_values(name + ".bias", out, 0.1));
  }
  void tensor(const std::string& name, ConstView& slot, std::int64_t rows, std::int64_t cols) override {
    slot = view(name, rows, cols, spec_gains(name, rows * cols));
  }
  std::int64_t count() const {
    std::int64_t sum = 0;
    for (const auto& [name, values] : memory_) sum += static_cast<std::int64_t>(values.size());
    return sum;
  }

 private:
  ConstView view(const std::string& name, std::int64_t rows, std::int64_t cols, std::vector<float> values) {
    std::vector<float>& kept = memory_.try_emplace(name, std::move(values)).first->second;
    return ConstView(reinterpret_cast<const std::byte*>(kept.data()), DType::F32, 1, rows, cols);
  }
  std::map<std::string, std::vector<float>> memory_;
};

inline FluxShape tiny_flux() {
  return {.hidden = 64,
          .heads = 2,
          .head_dim = 32,
          .axes = {8, 12, 12},
          .double_blocks = 2,
          .single_blocks = 2,
          .mlp_hidden = 256,
          .context_in = 48,
          .vector_in = 24,
          .in_channels = 16,
          .out_channels = 16,
          .guidance = true};
}

inline void set(const View& view, const std::vector<float>& values) {
  REQUIRE(view.count() == static_cast<std::int64_t>(values.size()));
  std::copy(values.begin(), values.end(), view.f32());
}

inline std::vector<float> get(const ConstView& view) { return {view.f32(), view.f32() + view.count()}; }

struct FluxHarness {
  flux::State state;
  LoraSet lora;
  SpecWeights weights;
  std::unique_ptr<Ops> ops = make_cpu_ops(2);
  std::vector<float> memory;
  std::vector<Stage> stages;

  FluxHarness(const FluxShape& shape, Sequence sequence, std::int64_t batch, flux::Wanted wanted,
              std::vector<LoraTarget> targets)
      : lora(std::move(targets)) {
    state.shape = shape;
    state.sequence = std::move(sequence);
    state.batch = batch;
    state.wanted = wanted;
    flux::prepare(state, lora);
    Carver measure;
    layout(measure);
    memory.resize(measure.used() / sizeof(float));
    Carver carver(reinterpret_cast<std::byte*>(memory.data()), measure.used());
    layout(carver);
    for (const Stage& stage : stages) stage.weights(weights);
    std::vector<float> cosine, sine;
    rotary_table(state.sequence.positions, shape.axes, shape.theta, cosine, sine);
    set(state.cosine, cosine);
    set(state.sine, sine);
  }

  void layout(Carver& carver) {
    lora.layout(carver);
    flux::layout(carver, state);
    stages = flux::stages(state, lora);
    for (const Stage& stage : stages) {
      stage.saved(carver);
      if (stage.lasting) stage.lasting(carver, false);
    }
  }
  void forward() {
    for (const Stage& stage : stages) stage.forward(*ops, Pass::kForward);
  }
  // Gradients of the adapters from zero.
  void backward() {
    if (lora.trained_count() > 0) ops->fill(lora.gradients(), 0.0F);
    for (auto stage = stages.rbegin(); stage != stages.rend(); ++stage) {
      if (stage->has_backward) stage->backward(*ops);
    }
  }
};

}  // namespace squareq::test
