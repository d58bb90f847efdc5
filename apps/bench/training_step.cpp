#include "apps/bench/training_step.h"

#include "apps/bench/measure.h"
#include "engine/lora_targets.h"
#include "engine/schedule.h"

namespace squareq::bench {
namespace {

std::vector<LoraTarget> benchmark_adapters(const SpeedOptions& options, const FluxShape& shape) {
  LoraConfig config;
  config.rank = options.rank;
  config.preset = options.targets;
  config.alpha = static_cast<double>(options.rank);
  return select_lora_targets(config, shape);
}

}  // namespace

FluxRun training_run(const SpeedOptions& options, const FluxShape& shape) {
  return {.batch = options.batch,
          .sequences = {make_sequence(options.text, {options.rows, options.cols})},
          .wanted = {.gradients = true},
          .keep = options.checkpointing ? Keep::kCheckpoint : Keep::kAll,
          .lora = benchmark_adapters(options, shape)};
}

void set_random_inputs(FluxEngine& engine) {
  const flux::State& s = engine.state();
  for (std::int64_t b = 0; b < s.batch; ++b) {
    const auto stream = static_cast<std::uint32_t>(3 * b);
    const std::vector<float> img = random_floats(s.img.rows * s.img.cols, stream);
    const std::vector<float> txt = random_floats(s.txt.rows * s.txt.cols, stream + 1);
    const std::vector<float> y = random_floats(s.y.cols, stream + 2);
    engine.set_sample(b, {.img = img, .txt = txt, .y = y, .sigma = 0.5});
  }
  engine.initialise_lora(LoraInit::kKaiming, 0);
}

void compute_gradients(FluxEngine& engine) {
  engine.zero_gradients();
  engine.forward();
  engine.device().ops().copy(engine.state().prediction, engine.state().dprediction, Accumulate::kNo);
  engine.backward();
}

TrainingSteps::TrainingSteps(FluxEngine& engine) : engine_(engine) { set_random_inputs(engine); }

void TrainingSteps::next() {
  Ops& ops = engine_.device().ops();
  LoraSet& lora = engine_.lora();
  compute_gradients(engine_);
  const double norm = ops.sum_of_squares(lora.gradients());
  AdamW update = lora.adamw();
  update.gradient_scale = static_cast<float>(clip_factor(norm, 1.0));
  update.step = ++step_;
  ops.adamw(update);
}

TrainingSteps::Time TrainingSteps::measure(int repeats) {
  // And the one of median_seconds: checksums, registration, plans of matrix products, clocks.
  constexpr int kWarmUps = 4;
  for (int i = 0; i < kWarmUps; ++i) next();
  Device& device = engine_.device();
  const std::int64_t allocations = device.allocations();
  const double seconds = median_seconds(
      repeats, [&] { next(); }, &device);
  return {.seconds = seconds, .allocations = device.allocations() - allocations};
}

}  // namespace squareq::bench
