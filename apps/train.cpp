// squareq-train: a configuration, pictures and captions in; a LoRA out.
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <ctime>
#include <filesystem>

#include "apps/program.h"
#include "engine/config.h"
#include "engine/import_config.h"
#include "engine/lora_export.h"
#include "engine/pipeline.h"
#include "engine/trainer.h"
#include "io/file.h"

namespace squareq {
namespace fs = std::filesystem;
namespace {

std::atomic<bool> g_stop{false};  // the only thing a signal handler may touch

extern "C" void request_stop(int) {
  g_stop = true;
  std::signal(SIGINT, SIG_DFL);  // a second signal ends the program at once
  std::signal(SIGTERM, SIG_DFL);
}

int train(const std::string& config_path) {
  const TrainConfig config = load_train_config(config_path);
  const ModelParts parts = configured_parts(config);
  const std::unique_ptr<Device> device = open_device(config.device, config.threads, config.compute);
  fs::create_directories(config.output_dir);

  const std::string slab_path =
      ensure_slab({.checkpoint = parts.transformer,
                   .slab = config.slab,
                   .cache_dir = config.cache_dir,
                   .codec = config.quantize == TrainConfig::Quantize::kInt8 ? Codec::kInt8Rows : Codec::kFloat,
                   .axes = config.axes_dims_rope,
                   .threads = static_cast<int>(config.threads)});
  const Slab slab(slab_path);
  TrainingSet data = load_training_set(config, parts, slab.flux_shape(), *device);
  const std::size_t pictures = data.examples.size();
  const ScheduleShift shift = read_schedule(parts, slab.flux_shape().guidance);
  Trainer trainer(*device, slab, config, std::move(data), shift);
  spdlog::info("{} pictures, {} trained parameters, {} steps of batch {} x {} on {}", pictures,
               trainer.engine().lora().trained_count(), config.training.steps, config.training.batch_size,
               config.training.accumulation, device->name());

  const fs::path output(config.output_dir);
  Metrics metrics((output / "metrics.jsonl").string(), config.training.steps);
  const std::time_t started = std::time(nullptr);
  const auto save = [&](std::int64_t steps, bool last) {
    const std::string name = last ? config.name : fmt::format("{}-{:06}", config.name, steps);
    const std::string path = (output / (name + ".safetensors")).string();
    export_lora(path, trainer.engine(), config,
                {.steps = steps, .pictures = static_cast<std::int64_t>(pictures), .started = started});
    spdlog::info("saved {}", path);
  };
  std::signal(SIGINT, request_stop);
  std::signal(SIGTERM, request_stop);
  const std::int64_t done = trainer.run(metrics, g_stop, save);
  const std::string curve = (output / (config.name + "-loss.svg")).string();
  metrics.write_curve(curve, config.name);
  spdlog::info("loss curve {}", curve);
  if (done < config.training.steps) spdlog::warn("stopped after {} of {} steps", done, config.training.steps);
  return 0;
}

int import_settings(const std::string& trainer, const std::string& path, const std::string& output) {
  const ImportedConfig config =
      import_config(trainer == "kohya" ? ForeignTrainer::kKohya : ForeignTrainer::kAiToolkit, path);
  if (output.empty()) {
    fmt::print("{}", config.json);
    fmt::print(stderr, "{}", import_report(config));
  } else {
    write_atomically(output, config.json);
    fmt::print("{}\n{}", output, import_report(config));
  }
  return 0;
}

}  // namespace
}  // namespace squareq

int main(int argc, char** argv) {
  CLI::App app("Trains a LoRA for a FLUX.1 model from pictures with captions. docs/config.md explains the settings.");
  std::string config;
  bool reference = false;
  app.add_option("config", config, "JSON file with the settings of the run; with --from, that of the other trainer");
  app.add_flag("--config-reference", reference, "print the documentation of every setting (docs/config.md) and stop");
  std::string trainer;
  std::string output;
  auto* from = app.add_option("--from", trainer, "turn the settings of another trainer into ours, and stop")
                   ->check(CLI::IsMember({"ai-toolkit", "kohya"}));
  app.add_option("-o,--output", output, "with --from: file to write; by default standard output")->needs(from);
  return squareq::run_program(app, argc, argv, [&] {
    if (reference) {
      fmt::print("{}", squareq::config_reference_markdown());
      return 0;
    }
    if (config.empty()) throw CLI::RequiredError("config");
    if (!trainer.empty()) return squareq::import_settings(trainer, config, output);
    return squareq::train(config);
  });
}
