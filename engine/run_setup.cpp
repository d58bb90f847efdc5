#include "engine/run_setup.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "engine/calibration.h"
#include "engine/dataset.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

// Sizes with their samples, and what was left out.
void log_dataset(const Dataset& dataset) {
  constexpr std::size_t kShown = 5;
  for (std::uint32_t i = 0; i < dataset.buckets.size(); ++i) {
    const auto count = std::count_if(dataset.samples.begin(), dataset.samples.end(),
                                     [&](const Sample& sample) { return sample.bucket == i; });
    spdlog::info("data: {} x {}: {} pictures", dataset.buckets[i].width, dataset.buckets[i].height, count);
  }
  for (std::size_t i = 0; i < std::min(kShown, dataset.findings.size()); ++i) {
    spdlog::warn("data: {}", Error(dataset.findings[i].problem).what());
  }
  if (dataset.findings.size() > kShown) {
    spdlog::warn("data: {} more; squareq-train CONFIG --check-data lists them", dataset.findings.size() - kShown);
  }
}

std::int64_t text_tokens_of(const TrainConfig& config, const ModelParts& parts, const FluxShape& shape) {
  return config.data.text_length > 0 ? config.data.text_length : text_length(parts, shape.guidance);
}

}  // namespace

RunSetup::RunSetup(const TrainConfig& config, const ModelParts& parts, const Slab& slab, Device& device,
                   std::optional<DType> activations)
    : config_(config),
      parts_(parts),
      slab_(slab),
      device_(device),
      activations_(activations),
      text_tokens_(text_tokens_of(config, parts, slab.flux_shape())),
      texts_(config, parts, text_tokens_),
      data_(open(config)) {
  std::vector<const EncodedData*> sets{data_.get()};
  inputs_.data = data_->training_set();
  inputs_.shift = read_schedule(parts, slab.flux_shape().guidance);
  if (!config.validation.folder.empty()) {
    TrainConfig held_out = config;
    held_out.data.folder = config.validation.folder;
    held_out.data.folders = {{.folder = config.validation.folder}};
    validation_ = open(held_out);
    sets.push_back(validation_.get());
    inputs_.validation = validation_->training_set();
  }
  const std::vector<std::string>& prompts = config.preview.prompts;
  if (!prompts.empty()) {
    inputs_.previews = std::make_unique<Previews>(config, parts, device, slab.flux_shape(), text_tokens_, activations);
  }
  encoding_.emplace(device, std::move(sets), texts_, std::set<std::string>(prompts.begin(), prompts.end()),
                    activations);
}

std::shared_ptr<const EncodedData> RunSetup::open(const TrainConfig& config) const {
  Dataset dataset = inspect_dataset(config.data, static_cast<int>(config.threads), Inspection::kHeaders);
  require_trainable(dataset);
  log_dataset(dataset);
  return std::make_shared<EncodedData>(config, parts_, std::move(dataset), text_tokens_);
}

MemoryPlan RunSetup::plan() {
  const FluxRun run = training_run(config_, slab_.flux_shape(), inputs_);
  FluxRun steps = run;
  steps.forward_only.clear();
  steps.guests.clear();
  const DeviceRates rates = calibrated_rates(device_, slab_, steps, config_.cache_dir);
  return plan_for(device_, slab_, run, rates, config_.vram_budget_gb, encoding_->sizes());
}

MemoryPlan RunSetup::plan(const DeviceRates& card) {
  const FluxRun run = training_run(config_, slab_.flux_shape(), inputs_);
  RunSizes sizes = measure_run(slab_, run, activations_.value_or(device_.ops().activation_type()));
  sizes.scratch = card.scratch;
  const auto budget = static_cast<std::size_t>(config_.vram_budget_gb * 0x1p30);
  return plan_memory(slab_, run, sizes, card, budget > 0 ? budget : card.memory, encoding_->sizes(card.scratch));
}

RunInputs RunSetup::encode(std::optional<MemoryPlan> plan) {
  std::map<std::string, Residency> encoders = plan ? plan->encoders : std::map<std::string, Residency>{};
  for (auto& [phase, residency] : encoders) residency.path = config_.host_path;
  encoding_->run(encoders);
  encoding_.reset();
  inputs_.data = training_set(data_);
  if (validation_) inputs_.validation = training_set(validation_);
  if (inputs_.previews) {
    std::vector<TextStates> states;
    for (const std::string& prompt : config_.preview.prompts) states.push_back(texts_.load(prompt));
    inputs_.previews->set_prompts(std::move(states));
  }
  inputs_.plan = std::move(plan);
  return std::move(inputs_);
}

TrainingSet RunSetup::training_set(const std::shared_ptr<const EncodedData>& data) const {
  const FluxShape& shape = slab_.flux_shape();
  TrainingSet set = data->training_set();
  set.load = [data](const Draw& draw) { return data->load(draw); };
  const EncodedExample first = set.load({});
  const std::int64_t tokens = set.grids[set.samples.front().bucket].tokens();
  if (tokens * shape.in_channels != static_cast<std::int64_t>(first.latent.size()) ||
      set.text_tokens * shape.context_in != static_cast<std::int64_t>(first.text.size()) ||
      shape.vector_in != static_cast<std::int64_t>(first.pooled.size())) {
    throw ConfigError({.where = config_.model,
                       .found = "encoders whose outputs do not fit the transformer",
                       .expected = "latents of " + std::to_string(shape.in_channels) +
                                   " channels, T5 states of width " + std::to_string(shape.context_in) +
                                   " and a CLIP state of width " + std::to_string(shape.vector_in),
                       .advice = "use the autoencoder and text encoders of the same model"});
  }
  return set;
}

}  // namespace squareq
