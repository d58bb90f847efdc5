#include "engine/memory_plan.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "engine/calibration.h"
#include "engine/lora_targets.h"
#include "engine/stream_model.h"
#include "io/file.h"
#include "io/slab_build.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/engine/tiny_model.h"
#include "tests/support.h"

using namespace squareq;
using namespace squareq::test;

namespace {

FluxShape shape_of_more_blocks() {
  FluxShape shape = tiny_shape();
  shape.double_blocks = 3;
  shape.single_blocks = 5;
  return shape;
}

struct Setup : TinySlab {
  FluxRun run;
  DeviceRates rates{.name = "test", .context = 1000, .blocks = {1e9, 1e9}, .copies = 1e8};

  Setup() : TinySlab(shape_of_more_blocks()) {
    LoraConfig lora;
    lora.rank = 4;
    lora.alpha = 4.0;
    run = {.batch = 2,
           .sequences = {make_sequence(5, {.rows = 2, .cols = 3}), make_sequence(9, {.rows = 4, .cols = 2})},
           .wanted = {.gradients = true},
           .keep = Keep::kCheckpoint,
           .lora = select_lora_targets(lora, slab->flux_shape())};
  }

  MemoryPlan plan(std::size_t budget) const {
    return plan_memory(*slab, run, measure_run(*slab, run, DType::F32), rates, budget);
  }
  std::size_t least() const {
    std::size_t low = 0;
    std::size_t high = std::size_t{1} << 30U;
    while (high - low > 1) {
      const std::size_t middle = (low + high) / 2;
      try {
        plan(middle);
        high = middle;
      } catch (const ConfigError&) {
        low = middle;
      }
    }
    return high;
  }
};

}  // namespace

TEST_CASE("a plan keeps to every budget, counts what the engine carves, and is never slower with more memory") {
  const Setup setup;
  const std::size_t least = setup.least();
  double before = INFINITY;
  for (std::size_t budget = least; budget < 4 * least; budget += least / 5) {
    const MemoryPlan plan = setup.plan(budget);
    INFO("budget " << budget << ", total " << plan.total() << ", " << plan.residency.streamed.size() << " streamed");
    CHECK(plan.total() <= budget);
    CHECK(plan.seconds <= before * 1.001);
    before = plan.seconds;
    // On the CPU, weights that stay are read where they are mapped, and scratch is not the arena's.
    std::size_t mapped = 0;
    for (const SlabBlock& block : setup.slab->blocks()) {
      const std::vector<std::string>& streamed = plan.residency.streamed;
      if (std::ranges::find(streamed, block.id) == streamed.end()) mapped += block.bytes;
    }
    const FluxEngine engine(*setup.device, *setup.slab, plan.apply(setup.run));
    CHECK(engine.arena().bytes() + mapped + setup.rates.context == plan.total());
  }
  const MemoryPlan all = setup.plan(std::size_t{1} << 30U);
  CHECK(all.residency.streamed.empty());
  CHECK(all.kept.all.size() == 8);
}

TEST_CASE("a budget that is too small is refused with what would fit") {
  const Setup setup;
  const std::string message = message_of<ConfigError>([&] { setup.plan(setup.least() - 1); });
  CHECK(contains(message, "set vram_budget_gb to"));
  CHECK(contains(message, "lora.rank"));
  CHECK(contains(message_of<ConfigError>([&] { card_rates("voodoo2"); }), "rtx3090"));
}

TEST_CASE("rates are measured where a run computes") {
  const Setup setup;
  const DeviceRates rates = measure_rates(*setup.device, *setup.slab, setup.run);
  CHECK(rates.blocks.forward > 0.0);
  CHECK(rates.blocks.backward > 0.0);
  CHECK(rates.prepared.forward == rates.blocks.forward);  // the CPU reads weights as they are stored
  CHECK(rates.prepared.backward == rates.blocks.backward);
  CHECK(rates.copies > 0.0);
  CHECK_FALSE(rates.projected);
}

TEST_CASE("rates are kept for the same run, and measured again for another or where the file is damaged") {
  const Setup setup;
  const TempDir folder;
  const auto rates = [&](const FluxRun& run) {
    return calibrated_rates(*setup.device, *setup.slab, run, folder.path().string());
  };
  const auto files = [&] {
    std::vector<std::filesystem::path> list;
    for (const auto& entry : std::filesystem::directory_iterator(folder.path() / "calibration")) {
      list.push_back(entry.path());
    }
    return list;
  };
  const double measured = rates(setup.run).blocks.forward;
  CHECK(measured > 0.0);
  CHECK(rates(setup.run).blocks.forward == measured);
  const std::filesystem::path first = files().at(0);
  write_atomically(first.string(), R"({"forward": "fast"})");
  CHECK(rates(setup.run).blocks.forward > 0.0);
  CHECK(read_text(first.string()).find("fast") == std::string::npos);
  write_atomically(first.string(), R"({"memory": 1, "context": 1, "forward": 1, "backward": 1, "copies": 1,
                                       "scratch": 1})");  // without rates of prepared weights
  CHECK(rates(setup.run).blocks.forward != 1.0);
  FluxRun other = setup.run;
  ++other.batch;
  CHECK(rates(other).blocks.forward > 0.0);
  CHECK(files().size() == 2);
}

TEST_CASE("the model of streaming: transfers that hide, that do not, and what the slots hold") {
  const auto step = [](std::size_t n, double seconds, std::size_t bytes) {
    std::vector<PassStage> list;
    for (std::size_t i = 0; i < n; ++i) list.push_back({i, seconds, bytes, 1});
    for (std::size_t i = n; i-- > 0;) list.push_back({i, seconds, bytes, 1});
    return list;
  };
  const auto near = [](double a, double b) { return std::fabs(a - b) <= 1e-9 * b; };
  CHECK(near(predict_step(step(10, 1.0, 0), 0, 1.0), 20.0));       // nothing streams
  CHECK(near(predict_step(step(10, 1.0, 1), 4, 100.0), 20.0));     // hidden
  CHECK(near(predict_step(step(10, 0.0, 1), 4, 1.0), 2.0 * 6.0));  // transfers alone: four serve both passes
  CHECK(near(predict_step(step(10, 0.001, 1), 10, 1.0), 0.02));    // all fit
  const double both = predict_step(step(10, 1.0, 1), 4, 1.0);
  CHECK(both >= 20.0);
  CHECK(both <= 22.0);
}
