#include "engine/lora_export.h"

#include <fmt/format.h>

#include <filesystem>

#include "io/lora_file.h"
#include "io/lora_layout.h"

namespace squareq {
namespace {

// The keys that user interfaces of other programs show.
std::map<std::string, std::string> run_metadata(const TrainConfig& config, const TrainingFacts& facts,
                                                std::time_t finished) {
  const TrainingConfig& t = config.training;
  const auto flag = [](bool value) { return std::string(value ? "True" : "False"); };
  std::map<std::string, std::string> entries{
      {"ss_learning_rate", fmt::format("{}", t.learning_rate)},
      {"ss_unet_lr", fmt::format("{}", t.learning_rate)},
      {"ss_optimizer",
       fmt::format("{}(betas=({}, {}),eps={},weight_decay={})", setting_text(config, "training.optimizer"), t.betas[0],
                   t.betas[1], t.epsilon, t.weight_decay)},
      {"ss_lr_scheduler", setting_text(config, "training.lr_schedule")},
      {"ss_lr_warmup_steps", std::to_string(t.warmup_steps)},
      {"ss_max_train_steps", std::to_string(t.steps)},
      {"ss_steps", std::to_string(facts.steps)},
      {"ss_num_train_images", std::to_string(facts.pictures)},
      {"ss_num_reg_images", "0"},
      {"ss_batch_size_per_device", std::to_string(t.batch_size)},
      {"ss_total_batch_size", std::to_string(t.batch_size * t.accumulation)},
      {"ss_gradient_accumulation_steps", std::to_string(t.accumulation)},
      {"ss_gradient_checkpointing", flag(t.activation_checkpointing)},
      {"ss_seed", std::to_string(t.seed)},
      {"ss_resolution", fmt::format("({}, {})", config.data.largest()[0], config.data.largest()[1])},
      {"ss_cache_latents", "True"},
      {"ss_max_grad_norm", fmt::format("{}", t.max_grad_norm)},
      {"ss_loss_type", setting_text(config, "training.loss")},
      {"ss_model_type", "flux"},
      {"ss_apply_t5_attn_mask", "False"},
      {"ss_weighting_scheme", setting_text(config, "training.loss_weighting")},
      {"ss_guidance_scale", fmt::format("{}", t.guidance)},
      {"ss_timestep_sampling", setting_text(config, "training.timestep_sampling")},
      {"ss_sigmoid_scale", fmt::format("{}", t.sigmoid_scale)},
      {"ss_logit_mean", fmt::format("{}", t.logit_mean)},
      {"ss_logit_std", fmt::format("{}", t.logit_std)},
      {"ss_model_prediction_type", "raw"},
      {"ss_discrete_flow_shift", fmt::format("{}", t.shift)}};
  if (t.noise_offset > 0.0) entries["ss_noise_offset"] = fmt::format("{}", t.noise_offset);
  if (config.timestamps) {
    entries["ss_training_started_at"] = fmt::format("{}", static_cast<double>(facts.started));
    entries["ss_training_finished_at"] = fmt::format("{}", static_cast<double>(finished));
  }
  return entries;
}

}  // namespace

void export_lora(const std::string& path, FluxEngine& engine, const TrainConfig& config, const TrainingFacts& facts) {
  const LoraSet& lora = engine.lora();
  std::vector<LoraAdapter> adapters;
  for (std::size_t i = 0; i < lora.targets().size(); ++i) {
    const LoraTarget& t = lora.targets()[i];
    if (!t.trained) continue;
    LoraAdapter adapter{.linear = t.linear,
                        .row_begin = t.row_begin,
                        .rows = t.rows,
                        .in = t.in,
                        .rank = t.rank,
                        .alpha = static_cast<float>(t.scale * static_cast<double>(t.rank))};
    adapter.down.resize(static_cast<std::size_t>(t.rank * t.in));
    adapter.up.resize(static_cast<std::size_t>(t.rows * t.rank));
    engine.device().download(lora.a(i), adapter.down.data());
    engine.device().download(lora.b(i), adapter.up.data());
    adapters.push_back(std::move(adapter));
  }
  const FluxShape& shape = engine.state().shape;
  const std::time_t finished = config.timestamps ? std::time(nullptr) : 0;
  const std::string base = config.transformer.empty() ? config.model : config.transformer;
  write_lora(path, arrange_adapters(std::move(adapters), shape, config.save_format), shape, config.save_format,
             config.save_dtype,
             lora_metadata({.rank = config.lora.rank,
                            .alpha = config.lora.alpha,
                            .guidance = shape.guidance,
                            .output_name = std::filesystem::path(path).stem().string(),
                            .base_model = std::filesystem::path(base).filename().string(),
                            .width = config.data.largest()[0],
                            .height = config.data.largest()[1],
                            .finished_at = finished,
                            .implementation_version = "squareq",
                            .extra = run_metadata(config, facts, finished)}));
}

}  // namespace squareq
