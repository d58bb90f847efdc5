// Copies of weights as products read them: who has some, when they are written, and what memory is spent on them.
#include <algorithm>
#include <filesystem>

#include "engine/lora_targets.h"
#include "engine/memory_plan.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/engine/preparing_device.h"
#include "tests/engine/tiny_model.h"

using namespace squareq;
using namespace squareq::test;

namespace {

constexpr std::size_t kLinearsOfDouble = 8;
constexpr std::size_t kLinearsOfSingle = 2;

FluxRun run_on(const Slab& slab) {
  LoraConfig lora;
  lora.rank = 4;
  lora.alpha = 4.0;
  return {.batch = 2,
          .sequences = {make_sequence(5, {.rows = 2, .cols = 3}), make_sequence(9, {.rows = 4, .cols = 2})},
          .wanted = {.gradients = true},
          .keep = Keep::kCheckpoint,
          .lora = select_lora_targets(lora, slab.flux_shape())};
}

// Predictions, then the gradients, of a batch of each shape, twice.
std::vector<float> passes(FluxEngine& engine) {
  std::vector<float> result;
  engine.initialise_lora(LoraInit::kKaiming, 1);
  engine.zero_gradients();
  for (const std::size_t sequence : {0U, 1U, 0U, 1U}) {
    engine.select(sequence);
    const flux::State& state = engine.state();
    std::uint32_t stream = 0;
    for (const View& view : {state.img, state.txt, state.y, state.dprediction}) {
      std::vector<float> values(static_cast<std::size_t>(view.count()));
      fill_random(values, stream++);
      engine.device().upload(values.data(), view);
    }
    engine.forward();
    engine.backward();
    const std::vector<float> prediction = engine.prediction();
    result.insert(result.end(), prediction.begin(), prediction.end());
  }
  const View gradients = engine.lora().gradients();
  result.insert(result.end(), gradients.f32(), gradients.f32() + gradients.count());
  return result;
}

struct PlanSetup : TinySlab {
  PreparingDevice backend{false};
  FluxRun run;
  RunSizes sizes;
  DeviceRates rates{.name = "test", .context = 1000, .blocks = {1e9, 1e9}, .prepared = {1.1e9, 1.2e9}, .copies = 1e8};

  PlanSetup()
      : TinySlab([] {
          FluxShape shape = tiny_shape();
          shape.double_blocks = 3;
          shape.single_blocks = 5;
          return shape;
        }()),
        run(run_on(*slab)),
        sizes(measure_run(backend, *slab, run)) {}

  MemoryPlan plan(std::size_t budget) const { return plan_memory(*slab, run, sizes, rates, budget); }
};

constexpr std::size_t kPlenty = std::size_t{1} << 30U;

}  // namespace

TEST_CASE("prepared weights: written once for each stage that has them, and never for one that streams") {
  const TinySlab setup;
  for (const bool in_place : {true, false}) {
    PreparingDevice device(in_place);
    FluxRun run = run_on(*setup.slab);
    run.residency = {.streamed = {"single_blocks.1"}, .slots = 3};
    FluxEngine plain(device, *setup.slab, run);
    const std::vector<float> expected = passes(plain);
    CHECK(device.ops().writes.empty());
    run.residency.prepared = {"double_blocks.0", "single_blocks.1"};
    FluxEngine engine(device, *setup.slab, run);
    CHECK(engine.arena().bytes() > plain.arena().bytes());
    CHECK(passes(engine) == expected);
    CHECK(device.ops().writes.size() == kLinearsOfDouble);
    CHECK(device.ops().reads.size() == kLinearsOfDouble);
    CHECK(device.ops().wrong == 0);
    for (const auto& [copy, count] : device.ops().writes) {
      CHECK(count == 1);
      CHECK(device.ops().reads.contains(copy));
    }
  }
}

TEST_CASE("prepared weights: none of a damaged block, and none are used after the slab changed") {
  const TinySlab setup;
  const std::string path = setup.folder.file("tiny.slab");
  std::string damaged = read_file(path);
  damaged[setup.slab->block("single_blocks.1").offset + 100] ^= 1;
  for (const bool in_place : {true, false}) {
    PreparingDevice device(in_place);
    FluxRun run = run_on(*setup.slab);
    run.residency = {.prepared = {"double_blocks.0", "single_blocks.0", "single_blocks.1"}, .path = HostPath::kRing};
    FluxEngine early(device, *setup.slab, run);
    passes(early);
    const std::map<const std::byte*, int> reads = device.ops().reads;
    const std::string whole = read_file(path);
    write_file(path, damaged);
    std::filesystem::last_write_time(path, std::filesystem::last_write_time(path) + std::chrono::seconds(1));
    for (int i = 0; i < 2; ++i) CHECK_THROWS_AS(passes(early), FileError);
    CHECK(device.ops().reads == reads);

    device.ops().writes.clear();
    FluxEngine late(device, *setup.slab, run);
    for (int i = 0; i < 2; ++i) CHECK_THROWS_AS(passes(late), FormatError);
    CHECK(device.ops().writes.size() <= kLinearsOfDouble + kLinearsOfSingle);  // of the blocks before, at most
    write_file(path, whole);
  }
}

TEST_CASE("prepared weights: all blocks have them where there is room, fewer where there is less") {
  const PlanSetup setup;
  const MemoryPlan all = setup.plan(kPlenty);
  CHECK(all.residency.prepared.size() == 8);
  CHECK(all.kept.all.size() == 8);
  CHECK(contains(plan_text(all), "8 have prepared weights"));
  std::set<std::size_t> numbers;
  double before = 0.0;
  for (std::size_t budget = all.total(); budget > 0; budget -= std::min(budget, all.total() / 40)) {
    MemoryPlan plan;
    try {
      plan = setup.plan(budget);
    } catch (const ConfigError&) {
      break;
    }
    INFO("budget " << budget << ", total " << plan.total());
    CHECK(plan.total() <= budget);
    CHECK(plan.seconds >= before * 0.999);
    before = plan.seconds;
    numbers.insert(plan.residency.prepared.size());
    std::size_t bytes = 0;
    for (const RunSizes::StageSize& stage : setup.sizes.stages) {
      if (std::ranges::find(plan.residency.prepared, stage.id) == plan.residency.prepared.end()) continue;
      CHECK(stage.recomputable);
      CHECK(std::ranges::find(plan.residency.streamed, stage.id) == plan.residency.streamed.end());
      bytes += stage.prepared;
    }
    for (const Phase& phase : plan.phases) CHECK(phase[MemoryUse::kPrepared] == bytes);
    PreparingDevice device(false);
    const FluxEngine engine(device, *setup.slab, plan.apply(setup.run));
    CHECK(engine.arena().bytes() + setup.rates.context == plan.total());
  }
  CHECK(numbers.size() > 3);
  CHECK(numbers.contains(0));
}

TEST_CASE("prepared weights: where they are not faster, none") {
  PlanSetup setup;
  for (const BlockRates rates : {setup.rates.blocks, BlockRates{1e9, 0.9e9}}) {
    setup.rates.prepared = rates;
    const MemoryPlan plan = setup.plan(kPlenty);
    CHECK(plan.residency.prepared.empty());
    CHECK(plan.residency.streamed.empty());
  }
}

TEST_CASE("prepared weights: a choice may ask for them, of blocks that stay") {
  const PlanSetup setup;
  const auto plan = [&](const PlanChoice& choice) {
    return plan_of(*setup.slab, setup.run, setup.sizes, setup.rates, kPlenty, choice);
  };
  const PlanChoice choice{
      .streamed = {"single_blocks.1"}, .prepared = {"embed", "double_blocks.1", "single_blocks.1"}, .slots = 4};
  CHECK(plan(choice).residency.prepared == std::vector<std::string>{"double_blocks.1"});
  CHECK(plan({}).residency.prepared.empty());
  CHECK(plan({.prepared = {"double_blocks.1"}}).seconds < plan({}).seconds);
}

TEST_CASE("prepared weights: their rates are measured, and they are asked for where they fit") {
  PlanSetup setup;
  const DeviceRates rates = measure_rates(setup.backend, *setup.slab, setup.run);
  CHECK(setup.backend.ops().writes.size() == kLinearsOfDouble + kLinearsOfSingle);
  CHECK(rates.prepared.forward >= rates.blocks.forward);
  CHECK(rates.prepared.backward >= rates.blocks.backward);

  const FluxRun prepared = with_prepared_blocks(setup.backend, *setup.slab, setup.run);
  CHECK(prepared.residency.prepared.size() == 8);
  CHECK(with_prepared_blocks(*make_cpu_device(1), *setup.slab, setup.run).residency.prepared.empty());
  CHECK(fits(setup.backend, *setup.slab, prepared));
  setup.backend.free = std::size_t{257} << 20U;
  CHECK_FALSE(fits(setup.backend, *setup.slab, prepared));
}
