#include "engine/trainer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/lora_export.h"
#include "engine/lora_targets.h"
#include "engine/saved_lora.h"
#include "io/slab_build.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/engine/tiny_model.h"
#include "tests/io/lora_adapters.h"
#include "tests/support.h"

using namespace squareq;
using namespace squareq::test;

namespace {

TrainingSet random_set() {
  TrainingSet set{.grid = {.rows = 2, .cols = 3}, .text_tokens = 5};
  for (std::uint32_t i = 0; i < 4; ++i) {
    EncodedExample example{
        .latent = std::vector<float>(6 * 16), .text = std::vector<float>(5 * 48), .pooled = std::vector<float>(24)};
    fill_random(example.latent, 10 * i);
    fill_random(example.text, 10 * i + 1);
    fill_random(example.pooled, 10 * i + 2);
    set.examples.push_back(std::move(example));
  }
  return set;
}

TrainConfig small_config() {
  TrainConfig config;
  config.data.resolution = {48, 32};
  config.lora.rank = 4;
  config.lora.alpha = 4.0;
  config.training.steps = 12;
  config.training.batch_size = 4;
  config.training.learning_rate = 1e-2;
  return config;
}

struct Bench {
  TempDir folder;
  std::unique_ptr<Device> device = make_cpu_device(2);
  std::unique_ptr<Slab> slab;

  Bench() {
    synthesize_slab(tiny_shape(), folder.file("tiny.slab"));
    slab = std::make_unique<Slab>(folder.file("tiny.slab"));
  }
  Trainer trainer(const TrainConfig& config) { return Trainer(*device, *slab, config, random_set(), {}); }
};

std::vector<float> parameters(Trainer& trainer) {
  const View view = trainer.engine().lora().parameters();
  return {view.f32(), view.f32() + view.count()};
}

std::vector<float> trained(Bench& bench, const TrainConfig& config) {
  Trainer trainer = bench.trainer(config);
  for (std::int64_t step = 1; step <= config.training.steps; ++step) trainer.step(step);
  return parameters(trainer);
}

}  // namespace

TEST_CASE("training repeats bit for bit, with and without activation checkpointing") {
  Bench bench;
  TrainConfig config = small_config();
  config.lora.preset = "all-linear";
  const std::vector<float> first = trained(bench, config);
  CHECK(trained(bench, config) == first);
  config.training.activation_checkpointing = false;
  CHECK(trained(bench, config) == first);
  config.training.seed = 43;
  CHECK(trained(bench, config) != first);
}

TEST_CASE("training lowers the loss over fixed draws, and a saved LoRA brings the same model back") {
  Bench bench;
  TrainConfig config = small_config();
  config.training.steps = 60;
  config.lora.split_qkv = true;
  config.save_dtype = DType::F32;
  const TrainingSet data = random_set();
  FixedDrawLoss before(*bench.device, *bench.slab, config.training, data, {});
  const double loss_before = before(8);

  Trainer trainer = bench.trainer(config);
  for (std::int64_t step = 1; step <= config.training.steps; ++step) trainer.step(step);
  const std::string file = bench.folder.file("lora.safetensors");
  export_lora(file, trainer.engine(), config, {.steps = 60, .pictures = 4});

  const SavedLoras loras = load_loras({file}, tiny_shape());
  FixedDrawLoss after(*bench.device, *bench.slab, config.training, data, loras.targets);
  loras.upload(after.engine());
  const double loss_after = after(8);
  CHECK(loss_after < 0.9 * loss_before);

  const SavedLoras off = load_loras({file + ":0"}, tiny_shape());
  FixedDrawLoss without(*bench.device, *bench.slab, config.training, data, off.targets);
  off.upload(without.engine());
  CHECK(std::fabs(without(8) - loss_before) <= 1e-6);
}

TEST_CASE("accumulated batches give the step of one large batch") {
  Bench bench;
  const auto step = [&](std::int64_t batch, std::int64_t accumulation) {
    TrainConfig config = small_config();
    config.training.batch_size = batch;
    config.training.accumulation = accumulation;
    Trainer trainer = bench.trainer(config);
    trainer.step(1);
    return trainer.step(2);
  };
  const Trainer::StepResult whole = step(4, 1);
  const Trainer::StepResult parts = step(2, 2);
  CHECK(std::fabs(parts.loss / whole.loss - 1.0) <= 1e-5);
  CHECK(std::fabs(parts.grad_norm / whole.grad_norm - 1.0) <= 1e-3);
}

TEST_CASE("a loss that is not finite stops the run and leaves the adapters") {
  Bench bench;
  const TrainConfig config = small_config();
  TrainingSet data = random_set();
  for (EncodedExample& example : data.examples) example.latent[0] = std::numeric_limits<float>::quiet_NaN();
  Trainer trainer(*bench.device, *bench.slab, config, std::move(data), {});
  const std::vector<float> before = parameters(trainer);
  CHECK(contains(message_of<NumericError>([&] { trainer.step(1); }), "training step 1"));
  CHECK(parameters(trainer) == before);
}

TEST_CASE("learning-rate schedules and clipping") {
  TrainingConfig config;
  config.steps = 110;
  config.warmup_steps = 10;
  config.learning_rate = 2.0;
  CHECK(std::fabs(learning_rate(config, 5) - 1.0) <= 1e-12);
  CHECK(std::fabs(learning_rate(config, 60) - 2.0) <= 1e-12);
  config.lr_schedule = TrainingConfig::Schedule::kLinear;
  CHECK(std::fabs(learning_rate(config, 61) - 1.0) <= 1e-12);
  config.lr_schedule = TrainingConfig::Schedule::kCosine;
  CHECK(std::fabs(learning_rate(config, 61) - 1.0) <= 1e-12);
  CHECK(std::fabs(learning_rate(config, 11) - 2.0) <= 1e-12);
  CHECK(clip_factor(4.0, 1.0) == 0.25);
  CHECK(clip_factor(0.5, 1.0) == 1.0);
  CHECK(clip_factor(4.0, 0.0) == 1.0);
}

TEST_CASE("presets and split projections select the adapters they name") {
  LoraConfig config;
  config.rank = 2;
  config.alpha = 1.0;
  config.preset = "all-linear";
  CHECK(select_lora_targets(config, tiny_shape()).size() == 10 + 2 * 3);
  config.preset = "attention";
  const std::vector<LoraTarget> attention = select_lora_targets(config, tiny_shape());
  REQUIRE(attention.size() == 4 + 2);
  CHECK(attention.back().rows == 3 * 64);  // of linear1, q, k and v only
  config.preset = "attention+mlp";
  config.split_qkv = true;
  const std::vector<LoraTarget> split = select_lora_targets(config, tiny_shape());
  CHECK(split.size() == 2 * (3 + 1 + 2) + 2 * (4 + 1));
  CHECK(split[1].row_begin == 64);
  CHECK(std::fabs(split[1].scale - 0.5) <= 1e-12);
  config.preset.clear();
  config.patterns = {"nothing"};
  CHECK(contains(message_of<ConfigError>([&] { select_lora_targets(config, tiny_shape()); }), "lora.targets"));
}

TEST_CASE("trainer: starting from a saved LoRA goes on where it was") {
  Bench bench;
  TrainConfig config = small_config();
  config.save_dtype = DType::F32;
  config.save_format = GENERATE(LoraNaming::kKohya, LoraNaming::kPeft);
  config.lora.split_qkv = GENERATE(false, true);
  config.lora.alpha = 2.0;
  const std::string path = bench.folder.file("first.safetensors");
  Trainer first = bench.trainer(config);
  for (std::int64_t step = 1; step <= 3; ++step) first.step(step);
  export_lora(path, first.engine(), config, {});

  config.lora.start_from = path;
  config.lora.rank = GENERATE(4, 6);
  config.lora.alpha = static_cast<double>(config.lora.rank);
  config.training.seed = 99;
  Trainer second = bench.trainer(config);
  const std::string again = bench.folder.file("again.safetensors");
  export_lora(again, second.engine(), config, {});
  const FluxShape shape = tiny_shape();
  const LoraFile a = read_lora(path, shape);
  const LoraFile b = read_lora(again, shape);
  CHECK(a.naming == config.save_format);
  for (const LinearSize& linear : flux_linears(shape)) {
    INFO(linear.name);
    CHECK(!(relative_l2(delta(b.adapters, linear), delta(a.adapters, linear)) > 1e-6));
  }
}

TEST_CASE("trainer: a saved LoRA that does not fit the adapters is refused") {
  Bench bench;
  TrainConfig config = small_config();
  config.lora.preset = "all-linear";
  const std::string path = bench.folder.file("first.safetensors");
  Trainer first = bench.trainer(config);
  first.step(1);
  export_lora(path, first.engine(), config, {});
  config.lora.start_from = path;
  config.lora.rank = 3;
  CHECK(contains(message_of<ConfigError>([&] { bench.trainer(config); }), "rank 4"));
  config.lora.rank = 4;
  config.lora.preset = "attention";
  CHECK(contains(message_of<ConfigError>([&] { bench.trainer(config); }), "lora.targets leaves out"));
}
