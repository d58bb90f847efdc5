#include "engine/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/stream_model.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

constexpr std::size_t kMargin = std::size_t{256} << 20U;  // left free where there is no budget
constexpr std::size_t kFewestSlots = 4;  // a stage takes two, so the next one can come while it computes

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
  std::size_t slots = 0;  // 0: nothing streams
  // By stage: do its weights stay, with prepared copies; does it keep all that it saved, or only what attention gave?
  std::vector<bool> resident, prepared, keeps, keeps_attention;
  std::size_t bytes = 0;
  double seconds = std::numeric_limits<double>::infinity();
};

class Planner {
 public:
  Planner(const Slab& slab, const FluxRun& run, const RunSizes& sizes, const DeviceRates& rates)
      : run_(run), sizes_(sizes), rates_(rates), fixed_(rates.context + sizes.adapters + sizes.scratch) {
    std::vector<std::string> all;
    for (const RunSizes::StageSize& stage : sizes.stages) all.push_back(stage.id);
    slot_ = aligned(slot_bytes(slab, all));
    for (std::size_t i = 0; i < sizes.stages.size(); ++i) (is_block(i) ? blocks_ : others_).push_back(i);
  }

  std::size_t blocks() const { return blocks_.size(); }

  Choice best(std::size_t budget) const {
    Choice best;
    const auto consider = [&](std::size_t kept, std::size_t attention) {
      for (const std::size_t slots : {0U, 4U, 6U, 8U, 12U, 16U, 24U, 32U, 48U, 64U}) {
        const Choice choice = make(kept, attention, slots, budget);
        if (choice.bytes <= budget && choice.seconds < best.seconds) best = choice;
      }
    };
    const std::size_t n = blocks_.size();
    if (run_.keep != Keep::kAll) {
      // A byte for results of attention saves several times the work of one for anything else.
      for (std::size_t attention = 0; attention < n; ++attention) consider(0, attention);
      for (std::size_t kept = 0; kept < n; ++kept) consider(kept, n - kept);
    }
    consider(n, 0);
    return best;
  }

  Choice of(const PlanChoice& wanted) const {
    Choice choice{.slots = wanted.slots};
    for (const RunSizes::StageSize& stage : sizes_.stages) {
      choice.resident.push_back(!wanted.streamed.contains(stage.id));
      choice.prepared.push_back(choice.resident.back() && stage.prepared > 0 && wanted.prepared.contains(stage.id));
      choice.keeps.push_back(!stage.recomputable || wanted.kept.all.contains(stage.id));
      choice.keeps_attention.push_back(!choice.keeps.back() && wanted.kept.attention.contains(stage.id));
    }
    choice.bytes = fixed_ + region(choice) + choice.slots * slot_ + resident_bytes(choice) + prepared_bytes(choice);
    choice.seconds = seconds(choice);
    return choice;
  }

  // What takes the least memory. Few or small blocks may take less than slots.
  Choice smallest() const {
    const std::size_t kept = run_.keep == Keep::kAll ? blocks_.size() : 0;
    Choice streamed = make(kept, 0, kFewestSlots, 0);
    Choice resident = make(kept, 0, 0, 0);
    return streamed.bytes < resident.bytes ? streamed : resident;
  }

  // Of the sequences that have a backward.
  std::size_t activations(const Choice& choice) const {
    std::size_t largest = 0;
    for (std::size_t sequence = 0; sequence < sizes_.shared.size(); ++sequence) {
      std::size_t own = sizes_.shared[sequence];
      std::size_t common = 0;
      for (std::size_t i = 0; i < sizes_.stages.size(); ++i) {
        const std::size_t saved = sizes_.stages[i].saved[sequence];
        own += sizes_.stages[i].lasting[sequence];
        if (choice.keeps_attention[i]) own += sizes_.stages[i].attention[sequence];
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

  // Of the region that they share with the other phases.
  std::size_t region(const Choice& choice) const {
    std::size_t largest = activations(choice);
    for (const RunSizes::Other& other : sizes_.others) largest = std::max(largest, other.bytes);
    return largest;
  }

  std::size_t resident_bytes(const Choice& choice) const {
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < sizes_.stages.size(); ++i) bytes += choice.resident[i] ? sizes_.stages[i].weights : 0;
    return bytes;
  }

  std::size_t prepared_bytes(const Choice& choice) const {
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < sizes_.stages.size(); ++i) bytes += choice.prepared[i] ? sizes_.stages[i].prepared : 0;
    return bytes;
  }

 private:
  bool is_block(std::size_t i) const { return sizes_.stages[i].recomputable; }

  // `kept` blocks keep all, `attention` more the results of attention, all evenly spread.
  Choice make(std::size_t kept, std::size_t attention, std::size_t slots, std::size_t budget) const {
    const std::size_t n = sizes_.stages.size();
    Choice choice{.slots = slots,
                  .resident = std::vector<bool>(n, slots == 0),
                  .prepared = std::vector<bool>(n, false),
                  .keeps = std::vector<bool>(n, false),
                  .keeps_attention = std::vector<bool>(n, false)};
    for (const std::size_t i : others_) choice.keeps[i] = true;
    const std::vector<std::size_t> order = spread(blocks_.size());
    for (std::size_t k = 0; k < kept; ++k) choice.keeps[blocks_[order[k]]] = true;
    for (std::size_t k = kept; k < kept + attention; ++k) choice.keeps_attention[blocks_[order[k]]] = true;
    choice.bytes = fixed_ + region(choice) + slots * slot_ + resident_bytes(choice);
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
    // What is left then goes to copies of weights that stay, where that is faster.
    Choice prepared = choice;
    for (const std::size_t k : order) {
      const std::size_t i = blocks_[k];
      const std::size_t bytes = sizes_.stages[i].prepared;
      if (bytes == 0 || !choice.resident[i] || prepared.bytes + bytes > budget) continue;
      prepared.prepared[i] = true;
      prepared.bytes += bytes;
    }
    if (prepared.bytes > choice.bytes) prepared.seconds = seconds(prepared);
    return prepared.seconds < choice.seconds ? prepared : choice;
  }

  double seconds(const Choice& choice) const {
    std::vector<PassStage> step;
    const auto add = [&](std::size_t i, double time) {
      const RunSizes::StageSize& stage = sizes_.stages[i];
      const std::size_t streamed = choice.resident[i] ? 0 : stage.weights;
      step.push_back(
          {.stage = i, .seconds = time, .streamed = streamed, .slots_used = stage.weights > slot_ ? 2U : 1U});
    };
    const auto rates = [&](std::size_t i) { return choice.prepared[i] ? rates_.prepared : rates_.blocks; };
    for (std::size_t i = 0; i < sizes_.stages.size(); ++i) add(i, sizes_.stages[i].work.forward() / rates(i).forward);
    for (std::size_t i = sizes_.stages.size(); i-- > 0;) {
      const RunSizes::StageSize& stage = sizes_.stages[i];
      if (!stage.weights_in_backward) continue;
      double again = choice.keeps[i] ? 0.0 : stage.work.forward();
      if (choice.keeps_attention[i]) again = stage.work.products;
      add(i, again / rates(i).forward + stage.work.backward() / rates(i).backward);
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

// What a phase takes at least.
struct Need {
  PhaseName phase;
  std::size_t bytes = 0;
};

// Of the phases of training, the one that decides the size of their arena.
Need least_need(const RunSizes& sizes, const Planner& planner, std::size_t budget) {
  const Choice smallest = planner.smallest();
  const std::size_t region = planner.region(smallest);
  const auto over = static_cast<double>(smallest.bytes - std::min(smallest.bytes, budget));
  const auto percent = [&](std::size_t part) {
    return std::floor((1.0 - over / static_cast<double>(part)) * 100.0);  // of it, so that all fits
  };
  PhaseName phase{.name = "training", .smaller = "lower resolution or batch_size"};
  for (const RunSizes::Other& other : sizes.others) {
    if (other.bytes == region) phase = other.phase;
  }
  if (percent(region) > 0.0) phase.smaller += fmt::format(", to {:.0f} % of the pixels", percent(region));
  if (percent(sizes.adapters) > 0.0) {
    phase.smaller += fmt::format("; or lower lora.rank to {:.0f} %", percent(sizes.adapters));
  }
  return {.phase = std::move(phase), .bytes = smallest.bytes};
}

[[noreturn]] void refuse(const Need& need, std::size_t budget) {
  throw ConfigError({.where = "vram_budget_gb",
                     .found = fmt::format("{:.3f} GiB", gib(budget)),
                     .expected = fmt::format("at least {:.3f} GiB for {}", gib(need.bytes), need.phase.name),
                     .advice = fmt::format("set vram_budget_gb to {:.3f} or more; or {}",
                                           std::ceil(gib(need.bytes) * 1000.0) / 1000.0, need.phase.smaller)});
}

std::string summary_of(const std::string& phase, std::size_t stages, const Residency& residency) {
  if (residency.streamed.empty()) return fmt::format("{}: all weights stay", phase);
  return fmt::format("{}: weights of {} of {} stages stream through {} slots", phase, residency.streamed.size(), stages,
                     residency.slots);
}

// Training and the phases that share its arena.
void add_training(MemoryPlan& plan, const Slab& slab, const FluxRun& run, const RunSizes& sizes, const Planner& planner,
                  const Choice& choice) {
  plan.seconds = choice.seconds;
  plan.residency = run.residency;
  plan.residency.streamed.clear();
  plan.residency.prepared.clear();
  for (std::size_t i = 0; i < sizes.stages.size(); ++i) {
    if (!choice.resident[i]) plan.residency.streamed.push_back(sizes.stages[i].id);
    if (choice.prepared[i]) plan.residency.prepared.push_back(sizes.stages[i].id);
    if (choice.keeps[i] && sizes.stages[i].recomputable) plan.kept.all.insert(sizes.stages[i].id);
    if (choice.keeps_attention[i]) plan.kept.attention.insert(sizes.stages[i].id);
  }
  const bool streams = !plan.residency.streamed.empty();
  plan.residency.slots = streams ? choice.slots : 0;
  Phase saving{.name = "saving", .bytes = {}};
  saving[MemoryUse::kDriver] = plan.rates.context;
  saving[MemoryUse::kAdapters] = sizes.adapters;
  saving[MemoryUse::kWeights] = planner.resident_bytes(choice);
  saving[MemoryUse::kPrepared] = planner.prepared_bytes(choice);
  // What streams may be less than all, and need smaller slots than planned.
  saving[MemoryUse::kSlots] = streams ? choice.slots * aligned(slot_bytes(slab, plan.residency.streamed)) : 0;
  const auto add = [&](const std::string& name, std::size_t activations) {
    Phase& phase = plan.phases.emplace_back(saving);
    phase.name = name;
    phase[MemoryUse::kActivations] = activations;
    phase[MemoryUse::kScratch] = sizes.scratch;
  };
  add("training", planner.activations(choice));
  for (const RunSizes::Other& other : sizes.others) add(other.phase.name, other.bytes);
  plan.phases.push_back(saving);
  plan.summary +=
      summary_of("training", sizes.stages.size(), plan.residency) +
      fmt::format("; of {} blocks {} keep their activations, {} those of attention, {} have prepared weights\n",
                  planner.blocks(), plan.kept.all.size(), plan.kept.attention.size(), plan.residency.prepared.size());
}

}  // namespace

EncoderPlan plan_encoder(const EncoderSizes& sizes, std::size_t context, std::size_t budget) {
  EncoderPlan plan;
  plan.phase.name = sizes.phase.name;
  plan.phase[MemoryUse::kDriver] = context;
  plan.phase[MemoryUse::kWeights] = sizes.weights;
  plan.phase[MemoryUse::kActivations] = sizes.activations;
  plan.phase[MemoryUse::kScratch] = sizes.scratch;
  if (sizes.slab == nullptr) return plan;

  const std::vector<SlabBlock>& blocks = sizes.slab->blocks();
  const std::size_t fixed = plan.phase.total();
  std::vector<std::string> streamed;
  std::size_t left = 0;  // bytes of those
  for (const SlabBlock& block : blocks) {
    streamed.push_back(block.id);
    left += aligned(block.bytes);
  }
  const std::size_t all = left;
  const auto need = [&](std::size_t bytes, const std::vector<std::string>& ids) {
    return all - bytes + (ids.empty() ? 0 : kFewestSlots * aligned(slot_bytes(*sizes.slab, ids)));
  };
  // First those stay without which slots are so much smaller that they cost nothing, then what fits.
  for (const bool spend : {false, true}) {
    for (const std::size_t i : spread(blocks.size())) {
      std::vector<std::string> others = streamed;
      if (std::erase(others, blocks[i].id) == 0) continue;
      const std::size_t then = need(left - aligned(blocks[i].bytes), others);
      if (then > need(left, streamed) && (!spend || fixed + then > budget)) continue;
      streamed = std::move(others);
      left -= aligned(blocks[i].bytes);
    }
  }
  if (fixed + all <= std::max(budget, fixed + need(left, streamed))) streamed.clear(), left = 0;
  plan.phase[MemoryUse::kWeights] += all - left;
  plan.phase[MemoryUse::kSlots] = need(left, streamed) - (all - left);
  if (!streamed.empty()) plan.residency = {.streamed = std::move(streamed), .slots = kFewestSlots};
  return plan;
}

std::size_t MemoryPlan::total() const {
  std::size_t largest = 0;
  for (const Phase& phase : phases) largest = std::max(largest, phase.total());
  return largest;
}

FluxRun MemoryPlan::apply(FluxRun run) const {
  run.residency = residency;
  run.kept = kept;
  if (run.keep != Keep::kNothing) run.keep = Keep::kCheckpoint;
  return run;
}

MemoryPlan plan_memory(const Slab& slab, const FluxRun& run, const RunSizes& sizes, const DeviceRates& rates,
                       std::size_t budget, const std::vector<EncoderSizes>& encoders) {
  MemoryPlan plan{.budget = budget, .rates = rates};
  Need need;  // the largest
  for (const EncoderSizes& encoder : encoders) {
    EncoderPlan chosen = plan_encoder(encoder, rates.context, budget);
    if (chosen.phase.total() > need.bytes) need = {.phase = encoder.phase, .bytes = chosen.phase.total()};
    plan.phases.push_back(std::move(chosen.phase));
    if (encoder.slab == nullptr) continue;
    plan.summary += summary_of(encoder.phase.name, encoder.slab->blocks().size(), chosen.residency) + "\n";
    plan.encoders[encoder.phase.name] = std::move(chosen.residency);
  }
  const Planner planner(slab, run, sizes, rates);
  const Choice choice = planner.best(budget);
  if (choice.resident.empty()) {
    Need training = least_need(sizes, planner, budget);
    if (training.bytes > need.bytes) need = std::move(training);
  }
  if (need.bytes > budget) refuse(need, budget);

  add_training(plan, slab, run, sizes, planner, choice);
  return plan;
}

MemoryPlan plan_of(const Slab& slab, const FluxRun& run, const RunSizes& sizes, const DeviceRates& rates,
                   std::size_t budget, const PlanChoice& choice) {
  MemoryPlan plan{.budget = budget, .rates = rates};
  const Planner planner(slab, run, sizes, rates);
  add_training(plan, slab, run, sizes, planner, planner.of(choice));
  return plan;
}

std::size_t budget_on(const Device& device, double budget_gib) {
  const DeviceMemory memory = device.memory();
  const std::size_t most = memory.free + memory.ours;
  const auto wanted = static_cast<std::size_t>(budget_gib * 0x1p30);
  if (wanted > most) {
    throw ConfigError({.where = "vram_budget_gb",
                       .found = fmt::format("{:.2f} GiB", budget_gib),
                       .expected = fmt::format("at most {:.2f} GiB, which {} has left", gib(most), device.name()),
                       .advice = "end other programs that use its memory, or lower the budget"});
  }
  return budget_gib > 0.0 ? wanted : most - std::min(most, kMargin);
}

bool fits(Device& device, const Slab& slab, const FluxRun& run) {
  const ArenaBytes bytes = FluxEngine::measure(device, slab, run);
  return driver_memory(device, slab) + bytes.layout + bytes.scratch <= budget_on(device, 0.0);
}

MemoryPlan plan_for(Device& device, const Slab& slab, const FluxRun& run, const DeviceRates& rates, double budget_gib,
                    const std::vector<EncoderSizes>& encoders) {
  return plan_memory(slab, run, measure_run(device, slab, run), rates, budget_on(device, budget_gib), encoders);
}

}  // namespace squareq
