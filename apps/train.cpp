// squareq-train: a configuration, pictures and captions in; a LoRA out.
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <optional>

#include "apps/program.h"
#include "apps/train/data_check.h"
#include "engine/config.h"
#include "engine/import_config.h"
#include "engine/kernel_cache.h"
#include "engine/memory_plan.h"
#include "engine/pipeline.h"
#include "engine/progress_log.h"
#include "engine/run_setup.h"
#include "io/file.h"

namespace squareq {
namespace fs = std::filesystem;
namespace {

std::atomic<bool> g_stop{false};  // the only thing a signal handler may touch

extern "C" void request_stop(int) {
  g_stop = true;
  std::signal(SIGINT, SIG_DFL);  // a second one ends the program at once
  std::signal(SIGTERM, SIG_DFL);
}

int train(const std::string& config_path) {
  const TrainConfig config = load_train_config(config_path);
  const ModelParts parts = configured_parts(config);
  const std::unique_ptr<Device> device = open_device(config.device, config.threads, config.compute);
  fs::create_directories(config.output_dir);
  load_kernel_choices(device->ops(), config.cache_dir);

  const Slab slab = open_slab(config, parts);
  RunSetup setup(config, parts, slab, *device);
  // A device that reads host memory has no need of a plan unless there is a budget.
  std::optional<MemoryPlan> plan;
  if (!device->reads_host_memory() || config.vram_budget_gb > 0.0) {
    plan = setup.plan();
    spdlog::info("memory of {}:\n{}", device->name(), plan_text(*plan));
  }
  RunInputs inputs = setup.encode(std::move(plan));
  TrainingRun run(*device, slab, config, std::move(inputs));
  save_kernel_choices(device->ops(), config.cache_dir);
  spdlog::info("{} pictures, {} trained parameters, {} steps of batch {} x {} on {}", run.trainer().data().pictures,
               run.trainer().engine().lora().trained_count(), config.training.steps, config.training.batch_size,
               config.training.accumulation, device->name());
  std::signal(SIGINT, request_stop);
  std::signal(SIGTERM, request_stop);
  const std::int64_t allocations = device->allocations();
  const std::int64_t done = run.run(g_stop);
  log_memory("training", *device);
  if (device->allocations() != allocations) spdlog::warn("memory was allocated during training, outside of the plan");
  if (done < config.training.steps) spdlog::warn("stopped after {} of {} steps", done, config.training.steps);
  return 0;
}

int print_plan(const std::string& config_path, const std::string& card) {
  const TrainConfig config = load_train_config(config_path);
  const ModelParts parts = configured_parts(config);
  const Slab slab = open_slab(config, parts);
  if (card.empty()) {
    const std::unique_ptr<Device> device = open_device(config.device, config.threads, config.compute);
    fmt::print("{}", plan_text(RunSetup(config, parts, slab, *device).plan()));
  } else {
    const DeviceRates rates = card_rates(card);
    const std::unique_ptr<Device> device = make_cpu_device(static_cast<int>(config.threads));
    fmt::print("{}", plan_text(RunSetup(config, parts, slab, *device, DType::BF16).plan(rates)));
  }
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
  bool schema = false;
  app.add_flag("--config-schema", schema,
               "print a JSON Schema of the settings for editors (configs/schema.json) and stop");
  bool all_settings = false;
  app.add_flag("--config-template", all_settings,
               "print a configuration with every setting and its meaning (configs/all-settings.json) and stop");
  app.add_flag("--config-reference", reference, "print the documentation of every setting (docs/config.md) and stop");
  bool check = false;
  bool json = false;
  auto* check_data = app.add_flag("--check-data", check,
                                  "report on pictures and captions, write a contact sheet, and stop; "
                                  "status 1 if something prevents training");
  app.add_flag("--json", json, "with --check-data: print JSON")->needs(check_data);
  bool plan = false;
  std::string card;
  auto* plan_flag = app.add_flag("--plan", plan, "print what the run takes of the device's memory, and stop");
  app.add_option("--card", card, "with --plan: project for a card by name (rtx3090, rtx4090, ...) instead")
      ->needs(plan_flag);
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
    if (all_settings) {
      fmt::print("{}", squareq::config_template_json());
      return 0;
    }
    if (schema) {
      fmt::print("{}", squareq::config_schema_json());
      return 0;
    }
    if (config.empty()) throw CLI::RequiredError("config");
    if (check) return squareq::run_data_check(config, json);
    if (!trainer.empty()) return squareq::import_settings(trainer, config, output);
    if (plan) return squareq::print_plan(config, card);
    return squareq::train(config);
  });
}
