// ai-toolkit: a YAML file with the training process under config.process.
#include <fmt/format.h>

#include <set>
#include <string_view>
#include <utility>

#include "engine/import_fields.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

using Json = ImportFields::Json;

constexpr const char* kProcess = "config.process[0].";

Json quantize_of(const Json& value) { return value.is_boolean() ? Json(value.get<bool>() ? "int8" : "none") : Json(); }

const std::vector<ImportFields::Rule>& rules() {
  static const std::vector<ImportFields::Rule> table = {
      {"training_folder", "output_dir", {}},
      {"model.name_or_path", "model", {}},
      {"model.quantize", "quantize", quantize_of},
      {"trigger_word", "data.trigger", {}},
      {"network.linear", "lora.rank", {}},
      {"network.pretrained_lora_path", "lora.start_from", {}},
      {"save.dtype", "save_dtype", dtype_of},
      {"save.save_every", "save_every", {}},
      {"train.batch_size", "training.batch_size", {}},
      {"train.steps", "training.steps", {}},
      {"train.gradient_accumulation_steps", "training.accumulation", {}},
      {"train.gradient_accumulation", "training.accumulation", {}},
      {"train.gradient_checkpointing", "training.activation_checkpointing", {}},
      {"train.lr", "training.learning_rate", {}},
      {"train.lr_scheduler", "training.lr_schedule", schedule_of},
      {"train.lr_scheduler_params.num_warmup_steps", "training.warmup_steps", {}},
      {"train.optimizer", "training.optimizer", optimizer_of},
      {"train.loss_type", "training.loss", spelled({{"mse", "l2"}})},
      {"train.noise_offset", "training.noise_offset", {}},
      {"sample.sample_every", "preview.every", {}},
      {"sample.sample_steps", "preview.steps", {}},
      {"sample.guidance_scale", "preview.guidance", {}},
      {"sample.seed", "preview.seed", {}},
      {"train.max_grad_norm", "training.max_grad_norm", {}},
      {"train.optimizer_params.weight_decay", "training.weight_decay", {}},
      {"train.optimizer_params.betas", "training.betas", {}},
      {"train.optimizer_params.eps", "training.epsilon", {}},
      {"train.timestep_type", "training.timestep_sampling",
       spelled({{"sigmoid", "sigmoid"}, {"linear", "uniform"}, {"flux_shift", "flux_shift"}, {"shift", "flux_shift"}})},
  };
  return table;
}

const std::vector<ImportFields::Rule>& folder_rules() {
  static const std::vector<ImportFields::Rule> table = {
      {"folder_path", "folder", {}},
      {"dataset_path", "folder", {}},
      {"num_repeats", "repeats", {}},
      {"loss_multiplier", "weight", {}},
      {"is_reg", "regularisation", {}},
      {"default_caption", "default_caption", {}},
      {"caption_dropout_rate", "caption_dropout", {}},
      {"shuffle_tokens", "tag_orders", tag_orders_of},
      {"keep_tokens", "keep_tags", {}},
      {"flip_x", "flip", {}},
      {"alpha_mask", "alpha_mask", {}},
      {"mask_path", "mask_folder", {}},
      {"mask_min_value", "mask_floor", {}},
  };
  return table;
}

// Data sets differ in resolutions there; here all folders have the same.
void import_data(ImportFields& fields, std::size_t datasets) {
  std::vector<Json> folders;
  std::set<std::int64_t> sides;
  std::vector<std::string> places;
  for (std::size_t i = 0; i < datasets; ++i) {
    const std::string prefix = fmt::format("{}datasets[{}].", kProcess, i);
    folders.push_back(fields.folder(folder_rules(), {prefix}));
    const std::string path = prefix + "resolution";
    const Json* resolution = fields.take(path);
    if (resolution == nullptr) continue;
    places.push_back(path);
    for (const Json& side : resolution->is_array() ? *resolution : Json::array({*resolution})) {
      sides.insert(side.is_number_integer() ? side.get<std::int64_t>() : 0);
    }
  }
  fields.set_folders(folders);
  if (places.empty()) {
    fields.set_default("data.resolution", 512U, "ai-toolkit");
  } else if (!fields.set("data.resolution", Json(std::vector<std::uint64_t>(sides.begin(), sides.end())))) {
    for (const std::string& path : places) fields.leave(path, "data.resolution takes up to 8 multiples of 16");
  } else if (places.size() > 1 && sides.size() > 1) {
    fields.remark("data.resolution", "all folders are trained at the resolutions of all");
  }
}

void import_noise_levels(ImportFields& fields) {
  const std::string type = std::string(kProcess) + "train.timestep_type";
  if (const Json* given = fields.peek(type); given != nullptr && (*given == "flux_shift" || *given == "shift")) {
    fields.remark(type, "there uniform noise levels are shifted, here those of sigmoid(normal)");
  }
  for (const auto& [name, weighting] :
       {std::pair("train.linear_timesteps", "bell"), {"train.linear_timesteps2", "bell_flat"}}) {
    const Json* given = fields.take(std::string(kProcess) + name);
    if (given == nullptr || *given != true) continue;
    fields.set("training.timestep_sampling", "uniform");
    fields.set_from(std::string(kProcess) + name, "training.loss_weighting", weighting);
  }
}

void import_average(ImportFields& fields) {
  const std::string section = std::string(kProcess) + "train.ema_config.";
  const Json* decay = fields.take(section + "ema_decay");
  const Json* wanted = fields.take(section + "use_ema");
  if (wanted == nullptr || *wanted != true) return;
  if (decay != nullptr) {
    fields.set_from(section + "ema_decay", "training.ema_decay", *decay);
  } else {
    fields.set_from(section + "use_ema", "training.ema_decay", 0.999);  // its default
  }
}

// The trigger word is written into prompts, where a preview knows of none.
void import_previews(ImportFields& fields) {
  const std::string section = std::string(kProcess) + "sample.";
  const Json* width = fields.take(section + "width");
  const Json* height = fields.take(section + "height");
  if (width != nullptr && height != nullptr && !fields.set("preview.size", Json::array({*width, *height}))) {
    for (const char* side : {"width", "height"}) fields.leave(section + side, "");
  }
  const Json* prompts = fields.peek(section + "prompts");
  if (prompts == nullptr || !prompts->is_array()) return;
  const Json* trigger = fields.peek(std::string(kProcess) + "trigger_word");
  Json ours = *prompts;
  for (Json& prompt : ours) {
    if (!prompt.is_string() || trigger == nullptr || !trigger->is_string()) continue;
    auto text = prompt.get<std::string>();
    constexpr std::string_view kPlace = "[trigger]";
    const std::size_t at = text.find(kPlace);
    if (at != std::string::npos) prompt = text.replace(at, kPlace.size(), trigger->get<std::string>());
  }
  fields.set_from(section + "prompts", "preview.prompts", ours);
}

// Words that say what is the case here anyway.
void take_matching(ImportFields& fields, std::size_t datasets) {
  const auto expect = [&](const std::string& name, const Json& value) {
    const std::string path = kProcess + name;
    const Json* found = fields.take(path);
    if (found != nullptr && *found != value) fields.leave(path, "");
  };
  expect("type", "sd_trainer");
  expect("network.type", "lora");
  expect("model.is_flux", true);
  expect("model.arch", "flux");
  expect("train.train_unet", true);
  expect("train.train_text_encoder", false);
  expect("train.noise_scheduler", "flowmatch");
  expect("train.content_or_style", "balanced");
  expect("sample.sampler", "flowmatch");
  expect("sample.walk_seed", true);
  for (std::size_t i = 0; i < datasets; ++i) expect(fmt::format("datasets[{}].caption_ext", i), "txt");
}

}  // namespace

ImportedConfig import_ai_toolkit(const Json& tree, const std::string& source) {
  ImportFields fields;
  fields.add(tree, "");
  const Json* process = nullptr;
  if (tree.contains("config") && tree["config"].is_object() && tree["config"].contains("process")) {
    process = &tree["config"]["process"];
  }
  if (process == nullptr || !process->is_array() || process->empty()) {
    throw FormatError({source, "no config.process", "a job file of ai-toolkit", ""});
  }
  fields.apply({{"config.name", "name", {}}}, "");
  fields.take("job");
  fields.apply(rules(), kProcess);
  const Json& first = process->at(0);
  const std::size_t datasets = first.is_object() && first.contains("datasets") ? first["datasets"].size() : 0;
  import_data(fields, datasets);
  take_matching(fields, datasets);
  import_noise_levels(fields);
  import_average(fields);
  import_previews(fields);
  // For FLUX it takes alpha = rank whatever the file says, and so does a missing lora.alpha here.
  const std::string alpha = std::string(kProcess) + "network.linear_alpha";
  const Json* rank = fields.peek(std::string(kProcess) + "network.linear");
  if (const Json* value = fields.take(alpha); value != nullptr && (rank == nullptr || *value != *rank)) {
    fields.remark(alpha, "ai-toolkit trains FLUX with alpha = rank whatever is set, and so does the result");
  }
  // Its adapters sit on every linear of the blocks, with q, k and v apart.
  fields.set("lora.targets", "all-linear");
  fields.set("lora.split_qkv", true);
  fields.set_default("lora.rank", 4, "ai-toolkit");
  fields.set_default("training.learning_rate", 1e-6, "ai-toolkit");
  fields.set_default("training.timestep_sampling", "sigmoid", "ai-toolkit");
  return fields.finish();
}

}  // namespace squareq
