#include "apps/bench/plans.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "apps/bench/measure.h"
#include "apps/bench/training_step.h"
#include "engine/memory_plan.h"
#include "engine/pipeline.h"

namespace squareq::bench {
namespace {

constexpr double kNoise = 1.02;       // between two measurements of the same
constexpr double kPrediction = 0.10;  // how far off it may be

std::vector<std::string> blocks_of(const RunSizes& sizes) {
  std::vector<std::string> list;
  for (const RunSizes::StageSize& stage : sizes.stages) {
    if (stage.recomputable) list.push_back(stage.id);
  }
  return list;
}

PlanChoice all_streamed(const RunSizes& sizes) {
  PlanChoice choice{.slots = 6};
  for (const RunSizes::StageSize& stage : sizes.stages) choice.streamed.insert(stage.id);
  return choice;
}

// Some blocks that keep all, some that keep attention's results, some slots, some of the stages on the device, and some
// of the blocks among these prepared.
PlanChoice random_choice(const RunSizes& sizes, std::mt19937_64& numbers) {
  PlanChoice choice = all_streamed(sizes);
  std::vector<std::string> blocks = blocks_of(sizes);
  std::shuffle(blocks.begin(), blocks.end(), numbers);
  const auto first = [&](std::size_t most) {
    return blocks.begin() + static_cast<std::ptrdiff_t>(numbers() % (most + 1));
  };
  choice.kept.all.insert(blocks.begin(), first(blocks.size()));
  choice.kept.attention.insert(blocks.begin(), first(blocks.size()));  // where both say so, all
  choice.slots = 4 + numbers() % 61;
  std::vector<std::string> stages(choice.streamed.begin(), choice.streamed.end());
  std::shuffle(stages.begin(), stages.end(), numbers);
  for (std::size_t i = numbers() % stages.size(); i > 0; --i) choice.streamed.erase(stages[i]);
  std::shuffle(blocks.begin(), blocks.end(), numbers);
  choice.prepared.insert(blocks.begin(), first(blocks.size()));
  return choice;
}

double step_seconds(Device& device, const Slab& slab, const FluxRun& run, int repeats) {
  FluxEngine engine(device, slab, run);
  return TrainingSteps(engine).measure(repeats).seconds;
}

}  // namespace

int run_plans(const SpeedOptions& speed, int random) {
  const Slab slab(speed.slab);
  const std::unique_ptr<Device> device = open_device(speed.device, speed.threads, speed.compute);
  const FluxRun run = training_run(speed, slab.flux_shape());
  const DeviceRates rates = measure_rates(*device, slab, run);
  const std::size_t budget = budget_on(*device, speed.budget);
  const RunSizes sizes = measure_run(*device, slab, run);
  const auto plan = [&](const PlanChoice& choice) { return plan_of(slab, run, sizes, rates, budget, choice); };

  std::vector<std::pair<std::string, MemoryPlan>> plans;
  plans.emplace_back("the planner's", plan_memory(slab, run, sizes, rates, budget));
  plans.emplace_back("all on the device, all recomputed", plan({}));
  PlanChoice streamed = all_streamed(sizes);
  for (const std::string& block : blocks_of(sizes)) {
    streamed.kept.all.insert(block);
    if (plan(streamed).total() > budget) streamed.kept.all.erase(block);
  }
  plans.emplace_back(fmt::format("all streamed, {} blocks keep all", streamed.kept.all.size()), plan(streamed));
  std::mt19937_64 numbers(1);  // NOLINT(cert-msc51-cpp): the same choices every time
  for (int i = 0; i < random;) {
    const PlanChoice choice = random_choice(sizes, numbers);
    MemoryPlan candidate = plan(choice);
    if (candidate.total() > budget) continue;
    const KeptStages& kept = candidate.kept;
    plans.emplace_back(fmt::format("random {}: {} streamed, {} slots, {} blocks keep all, {} attention, {} prepared",
                                   ++i, choice.streamed.size(), choice.slots, kept.all.size(), kept.attention.size(),
                                   candidate.residency.prepared.size()),
                       std::move(candidate));
  }

  nlohmann::json json;
  double chosen = 0.0;
  bool right = true;
  for (const auto& [name, candidate] : plans) {
    if (candidate.total() > budget) {
      fmt::print(stderr, "{}: {:.2f} GiB, more than the budget\n", name, gib(candidate.total()));
      continue;
    }
    const double seconds = step_seconds(*device, slab, candidate.apply(run), speed.repeats);
    if (chosen == 0.0) {
      chosen = seconds;
      right = std::fabs(candidate.seconds / seconds - 1.0) <= kPrediction;
    }
    right = right && chosen <= seconds * kNoise;
    json.push_back(
        {{"plan", name}, {"bytes", candidate.total()}, {"seconds", seconds}, {"predicted_seconds", candidate.seconds}});
    if (!speed.json) {
      fmt::print("{:.4f} s/step, predicted {:.4f} ({:+.1f} %), {:.2f} GiB: {}\n", seconds, candidate.seconds,
                 (candidate.seconds / seconds - 1.0) * 100.0, gib(candidate.total()), name);
    }
  }
  if (speed.json) fmt::print("{}\n", json.dump(1));
  return right ? 0 : 1;
}

}  // namespace squareq::bench
