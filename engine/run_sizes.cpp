#include "engine/run_sizes.h"

#include <algorithm>
#include <limits>

namespace squareq {
namespace {

// `ops`: of the backend whose copies of weights count; null: none do.
RunSizes sizes_of(const Slab& slab, const FluxRun& run, DType activations, const Ops* ops) {
  RunSizes sizes;
  LoraSet lora = adapters_of(run, activations);
  // Addresses without memory: adapters that are there have views that are not null.
  auto* nowhere = reinterpret_cast<std::byte*>(Carver::kAlignment);  // NOLINT(performance-no-int-to-ptr)
  const auto measure = [&](const auto& layout) {
    Carver carver(nowhere, std::numeric_limits<std::size_t>::max());
    layout(carver);
    return carver.used();
  };
  const auto lasting = [&](const Stage& stage, bool attention) {
    return stage.lasting ? measure([&](Carver& carver) { stage.lasting(carver, attention); }) : 0;
  };
  sizes.adapters = measure([&](Carver& carver) { lora.layout(carver); });
  const auto other = [&](const PhaseName& phase, std::size_t bytes) {
    const auto known = std::ranges::find(sizes.others, phase.name, [](const auto& o) { return o.phase.name; });
    if (known == sizes.others.end()) {
      sizes.others.push_back({.phase = phase, .bytes = bytes});
    } else {
      known->bytes = std::max(known->bytes, bytes);
    }
  };
  for (std::size_t sequence = 0; sequence < run.sequences.size() + run.forward_only.size(); ++sequence) {
    flux::State state = flux_state(slab, run, sequence, lora, activations);
    LossInputs loss;
    const std::size_t shared = measure([&](Carver& carver) { flux_layout(carver, state, loss); });
    const std::vector<Stage> stages = flux::stages(state, lora);
    if (sequence >= run.sequences.size()) {
      std::size_t largest = 0;
      for (const Stage& stage : stages) {
        largest = std::max(largest, measure(stage.saved) + lasting(stage, false));
      }
      other(run.forward_only[sequence - run.sequences.size()].phase, shared + largest);
      continue;
    }
    sizes.shared.push_back(shared);
    sizes.stages.resize(stages.size());
    for (std::size_t i = 0; i < stages.size(); ++i) {
      RunSizes::StageSize& size = sizes.stages[i];
      size.id = stages[i].id;
      size.weights = slab.block(size.id).bytes;
      size.recomputable = stages[i].recomputable;
      if (ops != nullptr && size.recomputable) {
        size.prepared = measure([&](Carver& carver) { take_prepared(carver, *ops, slab, stages[i]); });
      }
      size.weights_in_backward = stages[i].reads_weights_in_backward();
      if (stages[i].work.forward() > size.work.forward()) size.work = stages[i].work;
      size.saved.push_back(measure(stages[i].saved));
      size.lasting.push_back(lasting(stages[i], false));
      size.attention.push_back(lasting(stages[i], true) - size.lasting.back());
    }
  }
  for (const FluxRun::Guest& guest : run.guests) other(guest.phase, measure(guest.work.layout));
  return sizes;
}

}  // namespace

RunSizes measure_run(const Slab& slab, const FluxRun& run, DType activations) {
  return sizes_of(slab, run, activations, nullptr);
}

RunSizes measure_run(Device& device, const Slab& slab, const FluxRun& run) {
  RunSizes sizes = sizes_of(slab, run, device.ops().activation_type(), &device.ops());
  sizes.scratch = FluxEngine::measure(device, slab, run).scratch;
  return sizes;
}

FluxRun with_prepared_blocks(Device& device, const Slab& slab, FluxRun run) {
  run.residency.prepared.clear();
  for (const auto& stage : sizes_of(slab, run, device.ops().activation_type(), &device.ops()).stages) {
    if (stage.prepared > 0) run.residency.prepared.push_back(stage.id);
  }
  return run;
}

}  // namespace squareq
