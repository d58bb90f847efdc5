#include "engine/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/stream_model.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

constexpr std::size_t kMargin = std::size_t{256} << 20U;  // left free where there is no budget
constexpr std::size_t kFewestSlots = 4;  // a stage takes two, so the next one can come while it computes

double gib(std::size_t bytes) { return static_cast<double>(bytes) / 0x1p30; }

std::size_t aligned(std::size_t bytes) {
  return (bytes + Carver::kAlignment - 1) / Carver::kAlignment * Carver::kAlignment;
}

// Indices 0 .. n - 1 so that the first k of them lie evenly among all, for every k.
std::vector<std::size_t> spread(std::size_t n) {
  constexpr double kGolden = 0.61803398874989485;
  std::vector<std::pair<double, std::size_t>> places(n);
  std::vector<std::size_t> rank(n);
  for (std::size_t i = 0; i < n; ++i) places[i] = {std::fmod(static_cast<double>(i) * kGolden, 1.0), i};
  std::sort(places.begin(), places.end());
  for (std::size_t position = 0; position < n; ++position) rank[places[position].second] = position;
  return rank;
}

// One way to spend the memory.
struct Choice {
  std::size_t kept = 0;               // blocks that keep their activations, evenly spread
  std::size_t slots = 0;              // 0: nothing streams
  std::vector<bool> resident, keeps;  // by stage
  std::size_t bytes = 0;
  double seconds = std::numeric_limits<double>::infinity();
};

class Planner {
 public:
  Planner(const Slab& slab, const FluxRun& run, const RunSizes& sizes, const DeviceRates& rates)
      : run_(run), sizes_(sizes), rates_(rates), fixed_(rates.context + sizes.adapters + rates.scratch) {
    std::vector<std::string> all;
    for (const RunSizes::StageSize& stage : sizes.stages) all.push_back(stage.id);
    slot_ = aligned(slot_bytes(slab, all));
    for (std::size_t i = 0; i < sizes.stages.size(); ++i) (blocks(i) ? blocks_ : others_).push_back(i);
  }

  std::size_t slot() const { return slot_; }

  Choice best(std::size_t budget) const {
    Choice best;
    const bool all_kept = run_.keep == Keep::kAll;
    for (std::size_t kept = all_kept ? blocks_.size() : 0; kept <= blocks_.size(); ++kept) {
      for (const std::size_t slots : {0U, 4U, 6U, 8U, 12U, 16U, 24U, 32U, 48U, 64U}) {
        const Choice choice = make(kept, slots, budget);
        if (choice.bytes <= budget && choice.seconds < best.seconds) best = choice;
      }
    }
    return best;
  }

  // What takes the least memory.
  Choice smallest() const { return make(run_.keep == Keep::kAll ? blocks_.size() : 0, kFewestSlots, 0); }

  std::size_t activations(const Choice& choice) const {
    std::size_t largest = 0;
    for (std::size_t sequence = 0; sequence < sizes_.shared.size(); ++sequence) {
      std::size_t own = sizes_.shared[sequence];
      std::size_t common = 0;
      for (std::size_t i = 0; i < sizes_.stages.size(); ++i) {
        const std::size_t saved = sizes_.stages[i].saved[sequence];
        own += sizes_.stages[i].lasting[sequence];
        if (choice.keeps[i]) {
          own += saved;
        } else {
          common = std::max(common, saved);
        }
      }
      largest = std::max(largest, own + common);
    }
    return largest;
  }

  std::size_t resident_bytes(const Choice& choice) const {
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < sizes_.stages.size(); ++i) bytes += choice.resident[i] ? sizes_.stages[i].weights : 0;
    return bytes;
  }

 private:
  bool blocks(std::size_t i) const { return sizes_.stages[i].recomputable; }

  Choice make(std::size_t kept, std::size_t slots, std::size_t budget) const {
    const std::size_t n = sizes_.stages.size();
    Choice choice{.kept = kept, .slots = slots, .resident = std::vector<bool>(n, slots == 0), .keeps = {}};
    choice.keeps.assign(n, false);
    for (const std::size_t i : others_) choice.keeps[i] = true;
    const std::vector<std::size_t> order = spread(blocks_.size());
    for (std::size_t k = 0; k < kept; ++k) choice.keeps[blocks_[order[k]]] = true;
    choice.bytes = fixed_ + activations(choice) + slots * slot_ + resident_bytes(choice);
    // The rest of the budget goes to weights, first of those that are used in both passes.
    const auto stay = [&](std::size_t i) {
      if (choice.resident[i] || choice.bytes + sizes_.stages[i].weights > budget) return;
      choice.resident[i] = true;
      choice.bytes += sizes_.stages[i].weights;
    };
    for (const std::size_t k : order) stay(blocks_[k]);
    for (const std::size_t k : spread(others_.size())) stay(others_[k]);
    const bool streams = std::find(choice.resident.begin(), choice.resident.end(), false) != choice.resident.end();
    if (!streams) choice.bytes -= slots * slot_;
    choice.seconds = seconds(choice);
    return choice;
  }

  double seconds(const Choice& choice) const {
    std::vector<PassStage> step;
    const auto add = [&](std::size_t i, double time) {
      const RunSizes::StageSize& stage = sizes_.stages[i];
      const std::size_t streamed = choice.resident[i] ? 0 : stage.weights;
      step.push_back(
          {.stage = i, .seconds = time, .streamed = streamed, .slots_used = stage.weights > slot_ ? 2U : 1U});
    };
    for (std::size_t i = 0; i < sizes_.stages.size(); ++i) add(i, sizes_.stages[i].work.forward() / rates_.forward);
    for (std::size_t i = sizes_.stages.size(); i-- > 0;) {
      const RunSizes::StageSize& stage = sizes_.stages[i];
      if (!stage.weights_in_backward) continue;
      const double again = choice.keeps[i] ? 0.0 : stage.work.forward() / rates_.forward;
      add(i, again + stage.work.backward() / rates_.backward);
    }
    return predict_step(step, choice.slots, rates_.copies);
  }

  const FluxRun& run_;
  const RunSizes& sizes_;
  const DeviceRates& rates_;
  std::size_t fixed_;
  std::size_t slot_ = 0;
  std::vector<std::size_t> blocks_, others_;
};

[[noreturn]] void refuse(const RunSizes& sizes, std::size_t need, std::size_t activations, std::size_t budget) {
  const auto over = static_cast<double>(need - budget);
  std::string advice = fmt::format("set vram_budget_gb to {:.2f} or more", std::ceil(gib(need) * 100.0) / 100.0);
  const double activation_share = 1.0 - over / static_cast<double>(activations);
  if (activation_share > 0.0) {
    advice += fmt::format("; or lower the pixels of a batch (resolution, batch_size) to {:.0f} %",
                          std::floor(activation_share * 100.0));
  }
  const double adapter_share = 1.0 - over / static_cast<double>(sizes.adapters);
  if (adapter_share > 0.0) advice += fmt::format("; or lower lora.rank to {:.0f} %", std::floor(adapter_share * 100.0));
  throw ConfigError({.where = "vram_budget_gb",
                     .found = fmt::format("{:.2f} GiB", gib(budget)),
                     .expected = fmt::format("at least {:.2f} GiB, with all weights streamed", gib(need)),
                     .advice = advice});
}

}  // namespace

RunSizes measure_run(const Slab& slab, const FluxRun& run, DType activations) {
  RunSizes sizes;
  LoraSet lora = adapters_of(run, activations);
  // Addresses without memory: adapters that are there have views that are not null.
  auto* nowhere = reinterpret_cast<std::byte*>(Carver::kAlignment);  // NOLINT(performance-no-int-to-ptr)
  const auto measure = [&](const auto& layout) {
    Carver carver(nowhere, std::numeric_limits<std::size_t>::max());
    layout(carver);
    return carver.used();
  };
  sizes.adapters = measure([&](Carver& carver) { lora.layout(carver); });
  for (const Sequence& sequence : run.sequences) {
    flux::State state = flux_state(slab, run, sequence, lora, activations);
    LossInputs loss;
    sizes.shared.push_back(measure([&](Carver& carver) { flux_layout(carver, state, loss); }));
    const std::vector<Stage> stages = flux::stages(state, lora);
    sizes.stages.resize(stages.size());
    for (std::size_t i = 0; i < stages.size(); ++i) {
      RunSizes::StageSize& size = sizes.stages[i];
      size.id = stages[i].id;
      size.weights = slab.block(size.id).bytes;
      size.recomputable = stages[i].recomputable;
      size.weights_in_backward = stages[i].has_backward && stages[i].weights_in_backward;
      if (stages[i].work.forward() > size.work.forward()) size.work = stages[i].work;
      size.saved.push_back(measure([&](Carver& carver) { stages[i].saved(carver); }));
      size.lasting.push_back(measure([&](Carver& carver) {
        if (stages[i].lasting) stages[i].lasting(carver);
      }));
    }
  }
  return sizes;
}

std::size_t MemoryPlan::total() const {
  return std::accumulate(purposes.begin(), purposes.end(), std::size_t{0},
                         [](std::size_t sum, const auto& purpose) { return sum + purpose.second; });
}

FluxRun MemoryPlan::apply(FluxRun run) const {
  run.residency = residency;
  run.kept = kept;
  if (run.keep != Keep::kNothing) run.keep = Keep::kCheckpoint;
  return run;
}

MemoryPlan plan_memory(const Slab& slab, const FluxRun& run, const RunSizes& sizes, const DeviceRates& rates,
                       std::size_t budget) {
  const Planner planner(slab, run, sizes, rates);
  const Choice choice = planner.best(budget);
  if (choice.resident.empty()) {
    const Choice smallest = planner.smallest();
    refuse(sizes, smallest.bytes, planner.activations(smallest), budget);
  }
  MemoryPlan plan{.budget = budget, .seconds = choice.seconds, .rates = rates};
  plan.residency = run.residency;
  plan.residency.streamed.clear();
  for (std::size_t i = 0; i < sizes.stages.size(); ++i) {
    if (!choice.resident[i]) plan.residency.streamed.push_back(sizes.stages[i].id);
    if (choice.keeps[i] && sizes.stages[i].recomputable) plan.kept.insert(sizes.stages[i].id);
  }
  const bool streams = !plan.residency.streamed.empty();
  plan.residency.slots = streams ? choice.slots : 0;
  // What streams may be less than all, and need smaller slots than planned.
  const std::size_t slot = streams ? aligned(slot_bytes(slab, plan.residency.streamed)) : 0;
  plan.purposes = {{"driver and kernels", rates.context},
                   {"adapters, gradients and moments", sizes.adapters},
                   {fmt::format("weights that stay ({} of {} stages)",
                                sizes.stages.size() - plan.residency.streamed.size(), sizes.stages.size()),
                    planner.resident_bytes(choice)},
                   {fmt::format("{} slots for weights that stream", streams ? choice.slots : 0),
                    (streams ? choice.slots : 0) * slot},
                   {fmt::format("activations ({} of {} blocks keep theirs)", plan.kept.size(),
                                std::count_if(sizes.stages.begin(), sizes.stages.end(),
                                              [](const auto& stage) { return stage.recomputable; })),
                    planner.activations(choice)},
                   {"scratch of the operations", rates.scratch}};
  return plan;
}

MemoryPlan plan_for(Device& device, const Slab& slab, const FluxRun& run, double budget_gib) {
  const DeviceRates rates = measure_rates(device, slab, run);
  const DeviceMemory memory = device.memory();
  const std::size_t most = memory.free + rates.context;
  const auto wanted = static_cast<std::size_t>(budget_gib * 0x1p30);
  if (wanted > most) {
    throw ConfigError({.where = "vram_budget_gb",
                       .found = fmt::format("{:.2f} GiB", budget_gib),
                       .expected = fmt::format("at most {:.2f} GiB, which {} has left", gib(most), rates.name),
                       .advice = "end other programs that use its memory, or lower the budget"});
  }
  const std::size_t budget = budget_gib > 0.0 ? wanted : most - std::min(most, kMargin);
  return plan_memory(slab, run, measure_run(slab, run, device.ops().activation_type()), rates, budget);
}

std::string plan_text(const MemoryPlan& plan) {
  constexpr std::string_view kLetters = "daWSAs";
  constexpr double kWidth = 64.0;
  std::string text, bar;
  double end = 0.0;
  for (std::size_t i = 0; i < plan.purposes.size(); ++i) {
    const auto& [purpose, bytes] = plan.purposes[i];
    text += fmt::format("{:9.3f} GiB  {}  {}\n", gib(bytes), kLetters[i % kLetters.size()], purpose);
    end += static_cast<double>(bytes) / static_cast<double>(plan.budget) * kWidth;
    const auto width = static_cast<std::size_t>(std::lround(end));
    bar.resize(std::max(bar.size(), width), kLetters[i % kLetters.size()]);
  }
  bar.resize(std::max(bar.size(), static_cast<std::size_t>(kWidth)), '.');
  text += fmt::format("{:9.3f} GiB  of {:.3f} GiB\n[{}]\n", gib(plan.total()), gib(plan.budget), bar);
  text += fmt::format("{:.3f} s/step predicted for {}{}\n", plan.seconds, plan.rates.name,
                      plan.rates.projected ? ", a projection: nothing was measured" : "");
  return text;
}

}  // namespace squareq
