#include "engine/trainer.h"

#include <cmath>
#include <limits>

#include "engine/evaluation.h"
#include "engine/lora_export.h"
#include "engine/lora_targets.h"
#include "engine/saved_lora.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/engine/tiny_run.h"
#include "tests/io/lora_adapters.h"

using namespace squareq;
using namespace squareq::test;

TEST_CASE("training repeats bit for bit, with and without activation checkpointing") {
  TinyRun bench;
  TrainConfig config = small_config();
  config.lora.preset = "all-linear";
  const std::vector<float> first = trained(bench, config);
  CHECK(trained(bench, config) == first);
  config.training.activation_checkpointing = false;
  CHECK(trained(bench, config) == first);
  config.training.seed = 43;
  CHECK(trained(bench, config) != first);
}

namespace {

double loss_with(TinyRun& bench, const SavedLoras& loras) {
  const TrainingSet data = random_set();
  FluxEngine engine(*bench.device, *bench.slab, {.batch = 4, .sequences = sequences_of(data), .lora = loras.targets});
  loras.upload(engine);
  return fixed_draw_loss(engine, data, 0, 8, 1.0);
}

}  // namespace

TEST_CASE("training lowers the loss over fixed draws, and a saved LoRA brings the same model back") {
  TinyRun bench;
  TrainConfig config = small_config();
  config.training.steps = 60;
  config.lora.split_qkv = true;
  config.save_dtype = DType::F32;
  const double loss_before = loss_with(bench, {});

  Trainer trainer = bench.trainer(config);
  while (trainer.progress().step < 60) trainer.step();
  const std::string file = bench.folder.file("lora.safetensors");
  export_lora(file, trainer.engine(), config, {.steps = 60, .pictures = 4});

  CHECK(loss_with(bench, load_loras({file}, tiny_shape())) < 0.9 * loss_before);
  CHECK(std::fabs(loss_with(bench, load_loras({file + ":0"}, tiny_shape())) - loss_before) <= 1e-6);
}

TEST_CASE("accumulated batches give the step of one large batch") {
  TinyRun bench;
  const auto step = [&](std::int64_t batch, std::int64_t accumulation) {
    TrainConfig config = small_config();
    config.training.batch_size = batch;
    config.training.accumulation = accumulation;
    Trainer trainer = bench.trainer(config);
    trainer.step();
    return trainer.step();
  };
  const StepResult whole = step(4, 1);
  const StepResult parts = step(2, 2);
  CHECK(std::fabs(parts.loss / whole.loss - 1.0) <= 1e-5);
  CHECK(std::fabs(parts.grad_norm / whole.grad_norm - 1.0) <= 1e-3);
}

TEST_CASE("a step with a loss that is not finite leaves the adapters, their moments and their average alone") {
  TinyRun bench;
  TrainConfig config = small_config();
  config.training.ema_decay = 0.9;
  Trainer trainer = bench.trainer(config, std::numeric_limits<float>::quiet_NaN());
  const LoraSet& lora = trainer.engine().lora();
  std::vector<std::vector<float>> before;
  for (const auto& [name, view] : lora.learnt()) before.push_back(floats_of(view));
  CHECK(contains(trainer.step().skipped, "loss nan"));
  CHECK(contains(trainer.step().skipped, "loss nan"));
  CHECK(trainer.progress().step == 2);
  CHECK(trainer.progress().updates == 0);
  CHECK(trainer.progress().skipped == 2);
  for (std::size_t i = 0; i < before.size(); ++i) CHECK(floats_of(lora.learnt()[i].second) == before[i]);
}

TEST_CASE("8-bit moments and a Huber loss train nearly as float32 moments and a squared loss do") {
  TinyRun bench;
  TrainConfig config = small_config();
  config.training.steps = 40;
  const auto loss_after = [&] {
    Trainer trainer = bench.trainer(config);
    while (trainer.progress().step < 40) trainer.step();
    return fixed_draw_loss(trainer.engine(), trainer.data(), 0, 8, 1.0);
  };
  const double before = loss_with(bench, {});
  const double plain = loss_after();
  config.training.optimizer = TrainingConfig::Optimizer::kAdamW8Bit;
  CHECK(std::fabs(loss_after() - plain) <= 0.1 * (before - plain));
  config.training.loss = LossKind::kHuber;
  config.training.huber_c = 2.0;
  CHECK(loss_after() < 0.95 * before);
}

TEST_CASE("the average of the adapters is what evaluation sees, and training goes on from the adapters themselves") {
  TinyRun bench;
  TrainConfig config = small_config();
  config.training.ema_decay = 0.5;
  Trainer trainer = bench.trainer(config);
  const LoraSet& lora = trainer.engine().lora();
  std::vector<double> average;
  for (const float v : floats_of(lora.trained())) average.push_back(static_cast<double>(v));
  for (int update = 1; update <= 5; ++update) {
    trainer.step();
    const double keep = std::min(0.5, (1.0 + update) / (10.0 + update));
    const std::vector<float> now = floats_of(lora.trained());
    for (std::size_t i = 0; i < now.size(); ++i)
      average[i] = keep * average[i] + (1.0 - keep) * static_cast<double>(now[i]);
  }
  const std::vector<float> before = parameters(trainer);
  {
    const Trainer::Evaluation evaluation(trainer);
    CHECK(relative_l2(floats_of(lora.trained()), std::vector<float>(average.begin(), average.end())) <= 1e-6);
  }
  CHECK(parameters(trainer) == before);
}

TEST_CASE("rank dropout is drawn for each sample, from the seed, and not in evaluation") {
  TinyRun bench;
  TrainConfig config = small_config();
  config.lora.rank_dropout = 0.5;
  Trainer trainer = bench.trainer(config);
  const LoraSet& lora = trainer.engine().lora();
  trainer.step();
  const std::vector<float> keep = floats_of(lora.keep());
  CHECK(static_cast<std::int64_t>(keep.size()) == 4 * lora.trained_ranks());
  double sum = 0.0;
  for (const float factor : keep) {
    CHECK((factor == 0.0F || factor == 2.0F));
    sum += static_cast<double>(factor);
  }
  CHECK(std::fabs(sum / static_cast<double>(keep.size()) - 1.0) <= 0.3);
  const auto row = [&](std::ptrdiff_t sample) {
    const auto n = static_cast<std::ptrdiff_t>(lora.trained_ranks());
    return std::vector<float>(keep.begin() + sample * n, keep.begin() + (sample + 1) * n);
  };
  CHECK(row(0) != row(1));
  Trainer again = bench.trainer(config);
  again.step();
  CHECK(floats_of(again.engine().lora().keep()) == keep);
  const Trainer::Evaluation evaluation(trainer);
  CHECK(floats_of(lora.keep()) == std::vector<float>(keep.size(), 1.0F));
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
  config.overrides = {{.pattern = "single_blocks.*linear2", .rank = 8},
                      {.pattern = "single.*", .rank = 4, .alpha = 1.0}};
  for (const LoraTarget& target : select_lora_targets(config, tiny_shape())) {
    INFO(target.linear);
    const bool single = target.linear.starts_with("single");
    CHECK(target.rank == (!single ? 2 : target.linear.ends_with("linear2") ? 8 : 4));
    CHECK(std::fabs(target.scale - (single && target.rank == 4 ? 0.25 : 0.5)) <= 1e-12);
  }
  config.preset.clear();
  config.patterns = {"nothing"};
  CHECK(contains(message_of<ConfigError>([&] { select_lora_targets(config, tiny_shape()); }), "lora.targets"));
}

TEST_CASE("trainer: starting from a saved LoRA goes on where it was") {
  TinyRun bench;
  TrainConfig config = small_config();
  config.save_dtype = DType::F32;
  config.save_format = GENERATE(LoraNaming::kKohya, LoraNaming::kPeft);
  config.lora.split_qkv = GENERATE(false, true);
  config.lora.alpha = 2.0;
  const std::string path = bench.folder.file("first.safetensors");
  Trainer first = bench.trainer(config);
  for (int i = 0; i < 3; ++i) first.step();
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
  TinyRun bench;
  TrainConfig config = small_config();
  config.lora.preset = "all-linear";
  const std::string path = bench.folder.file("first.safetensors");
  Trainer first = bench.trainer(config);
  first.step();
  export_lora(path, first.engine(), config, {});
  config.lora.start_from = path;
  config.lora.rank = 3;
  CHECK(contains(message_of<ConfigError>([&] { bench.trainer(config); }), "rank 4"));
  config.lora.rank = 4;
  config.lora.preset = "attention";
  CHECK(contains(message_of<ConfigError>([&] { bench.trainer(config); }), "lora.targets leaves out"));
}
