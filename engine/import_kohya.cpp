// kohya's sd-scripts: TOML for --config_file, whose sections mean nothing, and a data set file in TOML.
#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <filesystem>
#include <set>

#include "engine/import_fields.h"
#include "engine/import_tree.h"
#include "io/file.h"

namespace squareq {
namespace {

namespace fs = std::filesystem;
using Json = ImportFields::Json;

// "0.01", "1e-8", "(0.9, 0.99)", "True" in lists of NAME=VALUE.
Json argument_value(std::string text) {
  std::erase_if(text, [](char c) { return c == '(' || c == ')' || c == '[' || c == ']' || c == ' '; });
  if (const std::size_t comma = text.find(','); comma != std::string::npos) {
    Json list = Json::array();
    list.push_back(argument_value(text.substr(0, comma)));
    const Json rest = argument_value(text.substr(comma + 1));
    if (rest.is_array()) {
      list.insert(list.end(), rest.begin(), rest.end());
    } else {
      list.push_back(rest);
    }
    return list;
  }
  double number = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc() && end == text.data() + text.size()) return number;
  if (text == "True" || text == "true") return true;
  if (text == "False" || text == "false") return false;
  return text;
}

// Lists like optimizer_args = ["weight_decay=0.01", "betas=(0.9, 0.99)"] as fields "optimizer_args.weight_decay".
Json arguments(const Json& list) {
  if (!list.is_array()) return list;
  Json table = Json::object();
  for (const Json& entry : list) {
    if (!entry.is_string()) return list;
    const auto text = entry.get<std::string>();
    const std::size_t sign = text.find('=');
    if (sign == std::string::npos) return list;
    table[text.substr(0, sign)] = argument_value(text.substr(sign + 1));
  }
  return table.empty() ? list : table;
}

// All settings on one level, as sd-scripts reads them, but for what describes data.
Json without_sections(const Json& tree) {
  Json flat = Json::object();
  const auto put = [&](const std::string& key, const Json& value) {
    flat[key] =
        key == "optimizer_args" || key == "network_args" || key == "lr_scheduler_args" ? arguments(value) : value;
  };
  for (const auto& [key, value] : tree.items()) {
    if (!value.is_object() || key == "general") {
      put(key, value);
      continue;
    }
    for (const auto& [inner, inner_value] : value.items()) put(inner, inner_value);
  }
  return flat;
}

Json train_blocks_of(const Json& value) {
  static const auto convert = spelled({{"all", "all-linear"},
                                       {"double", Json::array({R"(double_blocks\.\d+\..*)"})},
                                       {"single", Json::array({R"(single_blocks\.\d+\..*)"})}});
  return convert(value);
}

Json thousandth_of(const Json& value) { return value.is_number() ? Json(value.get<double>() / 1000.0) : Json(); }

const std::vector<ImportFields::Rule>& rules() {
  static const std::vector<ImportFields::Rule> table = {
      {"pretrained_model_name_or_path", "model", {}},
      {"ae", "vae", {}},
      {"clip_l", "clip", {}},
      {"t5xxl", "t5", {}},
      {"output_dir", "output_dir", {}},
      {"output_name", "name", {}},
      {"save_precision", "save_dtype", dtype_of},
      {"save_every_n_steps", "save_every", {}},
      {"max_data_loader_n_workers", "threads", {}},
      {"bucket_reso_steps", "data.bucket_step", {}},
      {"prior_loss_weight", "data.prior_weight", {}},
      {"t5xxl_max_token_length", "data.text_length", {}},
      {"network_dim", "lora.rank", {}},
      {"network_alpha", "lora.alpha", {}},
      {"network_weights", "lora.start_from", {}},
      {"network_args.train_blocks", "lora.targets", train_blocks_of},
      {"network_args.split_qkv", "lora.split_qkv", {}},
      {"network_args.rank_dropout", "lora.rank_dropout", {}},
      {"max_train_steps", "training.steps", {}},
      {"train_batch_size", "training.batch_size", {}},
      {"gradient_accumulation_steps", "training.accumulation", {}},
      {"gradient_checkpointing", "training.activation_checkpointing", {}},
      {"seed", "training.seed", {}},
      {"learning_rate", "training.learning_rate", {}},
      {"unet_lr", "training.learning_rate", {}},
      {"lr_scheduler", "training.lr_schedule", schedule_of},
      {"lr_warmup_steps", "training.warmup_steps", {}},
      {"lr_scheduler_num_cycles", "training.lr_cycles", {}},
      {"lr_scheduler_power", "training.lr_power", {}},
      {"lr_scheduler_min_lr_ratio", "training.lr_end", {}},
      {"optimizer_type", "training.optimizer", optimizer_of},
      {"optimizer_args.weight_decay", "training.weight_decay", {}},
      {"optimizer_args.betas", "training.betas", {}},
      {"optimizer_args.eps", "training.epsilon", {}},
      {"max_grad_norm", "training.max_grad_norm", {}},
      {"timestep_sampling", "training.timestep_sampling",
       spelled({{"sigma", "sigma"},
                {"uniform", "uniform"},
                {"sigmoid", "sigmoid"},
                {"shift", "shift"},
                {"flux_shift", "flux_shift"}})},
      {"weighting_scheme", "training.loss_weighting",
       spelled({{"none", "none"}, {"uniform", "none"}, {"sigma_sqrt", "sigma_sqrt"}, {"cosmap", "cosmap"}})},
      {"mode_scale", "training.mode_scale", {}},
      {"min_timestep", "training.sigma_min", thousandth_of},
      {"max_timestep", "training.sigma_max", thousandth_of},
      {"loss_type", "training.loss", spelled({{"l2", "l2"}, {"huber", "huber"}})},
      {"huber_c", "training.huber_c", {}},
      {"noise_offset", "training.noise_offset", {}},
      {"sample_every_n_steps", "preview.every", {}},
      {"sigmoid_scale", "training.sigmoid_scale", {}},
      {"logit_mean", "training.logit_mean", {}},
      {"logit_std", "training.logit_std", {}},
      {"discrete_flow_shift", "training.shift", {}},
      {"guidance_scale", "training.guidance", {}},
  };
  return table;
}

const std::vector<ImportFields::Rule>& folder_rules() {
  static const std::vector<ImportFields::Rule> table = {
      {"image_dir", "folder", {}},
      {"train_data_dir", "folder", {}},
      {"num_repeats", "repeats", {}},
      {"is_reg", "regularisation", {}},
      {"class_tokens", "default_caption", {}},
      {"caption_prefix", "prefix", {}},
      {"caption_suffix", "suffix", {}},
      {"caption_dropout_rate", "caption_dropout", {}},
      {"shuffle_caption", "tag_orders", tag_orders_of},
      {"keep_tokens", "keep_tags", {}},
      {"flip_aug", "flip", {}},
      {"alpha_mask", "alpha_mask", {}},
      {"conditioning_data_dir", "mask_folder", {}},
  };
  return table;
}

// 512, "512", "512,768" and [512, 768] (width, height) as whole numbers; empty for anything else.
std::vector<std::int64_t> sides_of(const Json& value) {
  const Json given = value.is_string() ? argument_value(value.get<std::string>()) : value;
  std::vector<std::int64_t> sides;
  for (const Json& side : given.is_array() ? given : Json::array({given})) {
    if (!side.is_number() || !(side.get<double>() >= 1.0 && side.get<double>() <= 65536.0)) return {};
    sides.push_back(static_cast<std::int64_t>(side.get<double>()));
  }
  if (sides.size() == 1) sides.push_back(sides[0]);
  return sides.size() == 2 ? sides : std::vector<std::int64_t>();
}

// The first of the places that has the field; those after it are covered by it.
const Json* first_of(ImportFields& fields, const std::string& name, const std::vector<std::string>& places,
                     std::string* where = nullptr) {
  const Json* first = nullptr;
  for (const std::string& place : places) {
    const Json* found = fields.take(place + name);
    if (found == nullptr || first != nullptr) continue;
    first = found;
    if (where != nullptr) *where = place + name;
  }
  return first;
}

// Data sets differ in resolutions there; here all folders have the same.
class Resolutions {
 public:
  void add(ImportFields& fields, const std::vector<std::string>& places) {
    std::string path;
    const Json* resolution = first_of(fields, "resolution", places, &path);
    const Json* buckets = first_of(fields, "enable_bucket", places);
    const Json* keep_small = first_of(fields, "bucket_no_upscale", places);
    if (resolution == nullptr) return;
    const std::vector<std::int64_t> sides = sides_of(*resolution);
    paths_.push_back(path);
    if (sides.empty()) {
      fixed_.insert("");
    } else if (buckets == nullptr || *buckets != true) {
      fixed_.insert(fmt::format("{}x{}", sides[0], sides[1]));
    } else {
      const double side = std::sqrt(static_cast<double>(sides[0]) * static_cast<double>(sides[1]));
      const std::uint64_t nearest = 16 * static_cast<std::uint64_t>(std::llround(side / 16.0));
      sides_.insert(nearest);
      rounded_ = rounded_ || static_cast<double>(nearest) != side;
      upscale_ = keep_small == nullptr || *keep_small != true;
    }
  }

  void set(ImportFields& fields) const {
    if (paths_.empty()) return;
    const bool one_size = sides_.empty() && fixed_.size() == 1;
    const Json value =
        one_size ? Json(*fixed_.begin()) : Json(std::vector<std::uint64_t>(sides_.begin(), sides_.end()));
    if ((!one_size && !fixed_.empty()) || !fields.set("data.resolution", value)) {
      for (const std::string& path : paths_) {
        fields.leave(path, "data.resolution takes one size, or areas of buckets, in multiples of 16");
      }
      return;
    }
    if (upscale_) fields.set("data.upscale", true);
    if (rounded_) fields.remark("data.resolution", "the nearest squares with sides of a multiple of 16");
    if (sides_.size() > 1) fields.remark("data.resolution", "all folders are trained at the resolutions of all");
  }

 private:
  std::vector<std::string> paths_;
  std::set<std::string> fixed_;
  std::set<std::uint64_t> sides_;
  bool rounded_ = false;
  bool upscale_ = false;
};

std::size_t entries(const Json& tree, const char* list) {
  return tree.is_object() && tree.contains(list) && tree[list].is_array() ? tree[list].size() : 0;
}

void first_caption_extension(ImportFields& fields, const std::vector<std::string>& places) {
  std::string path;
  const Json* extension = first_of(fields, "caption_extension", places, &path);
  if (extension != nullptr && *extension != ".txt" && *extension != ".caption") fields.leave(path, "");
}

// `data`: what describes data, whose fields start with `prefix`.
void import_data(ImportFields& fields, const Json& data, const std::string& prefix) {
  std::vector<Json> folders;
  Resolutions resolutions;
  const std::string general = prefix + "general.";
  for (std::size_t i = 0; i < entries(data, "datasets"); ++i) {
    const std::string dataset = fmt::format("{}datasets[{}].", prefix, i);
    for (std::size_t k = 0; k < entries(data["datasets"][i], "subsets"); ++k) {
      const std::string subset = fmt::format("{}subsets[{}].", dataset, k);
      folders.push_back(fields.folder(folder_rules(), {subset, dataset, general, ""}));
      first_caption_extension(fields, {subset, dataset, general, ""});
    }
    resolutions.add(fields, {dataset, general, ""});
    std::string path;
    const Json* size = first_of(fields, "batch_size", {dataset, general}, &path);
    if (size != nullptr) fields.set_from(path, "training.batch_size", *size);
  }
  if (folders.empty()) {
    resolutions.add(fields, {""});
    folders.push_back(fields.folder(folder_rules(), {""}));
    if (fields.peek("train_data_dir") != nullptr) {
      fields.remark("train_data_dir", "its subfolders COUNT_NAME belong into data.folders, with COUNT as repeats");
    }
    first_caption_extension(fields, {""});
  }
  fields.set_folders(folders);
  resolutions.set(fields);
}

// Settings that say what is the case here anyway.
void take_matching(ImportFields& fields) {
  const auto expect = [&](const std::string& path, const Json& value) {
    const Json* found = fields.take(path);
    if (found != nullptr && *found != value) fields.leave(path, "");
  };
  expect("network_module", "networks.lora_flux");
  expect("network_train_unet_only", true);
  expect("save_model_as", "safetensors");
  expect("model_prediction_type", "raw");
  expect("apply_t5_attn_mask", false);
}

// What describes data: the file that the settings name, or else the settings themselves.
struct DataTree {
  Json tree;
  std::string prefix;  // of its fields
};
DataTree data_tree(ImportFields& fields, const Json& settings, const std::string& source) {
  const Json* named = fields.take("dataset_config");
  if (named == nullptr || !named->is_string()) return {settings, ""};
  const fs::path name(named->get<std::string>());
  const fs::path beside = fs::path(source).parent_path() / name;
  std::error_code error;
  const fs::path path = fs::is_regular_file(beside, error) ? beside : name;
  if (!fs::is_regular_file(path, error)) {
    fields.leave("dataset_config", "there is no such file, so data.folder and data.resolution are not known");
    return {settings, ""};
  }
  DataTree data{parse_toml(read_text(path.string()), path.string()), path.filename().string() + ": "};
  for (const auto& [key, value] : data.tree.items()) fields.add(Json{{data.prefix + key, value}}, "");
  return data;
}

}  // namespace

ImportedConfig import_kohya(const Json& tree, const std::string& source) {
  ImportFields fields;
  fields.add(without_sections(tree), "");
  const DataTree data = data_tree(fields, tree, source);
  fields.apply(rules(), "");
  import_data(fields, data.tree, data.prefix);
  take_matching(fields);
  // Its adapters sit on every linear of the blocks, with q, k and v as one.
  const char* kohya = "sd-scripts";
  fields.set_default("lora.targets", "all-linear", kohya);
  fields.set_default("lora.rank", 4, kohya);
  fields.set_default("lora.alpha", 1.0, kohya);
  fields.set_default("training.steps", 1600, kohya);
  fields.set_default("training.learning_rate", 2e-6, kohya);
  fields.set_default("training.guidance", 3.5, kohya);
  fields.set_default("training.timestep_sampling", "sigma", kohya);
  const Json* sampling = fields.peek("timestep_sampling");
  const Json* scheme = fields.peek("weighting_scheme");
  if (scheme != nullptr && *scheme == "mode" && (sampling == nullptr || *sampling == "sigma")) {
    fields.take("weighting_scheme");  // which here decides how noise levels are drawn
    fields.set("training.timestep_sampling", "mode");
  }
  fields.leave("sample_prompts", "put its prompts into preview.prompts");
  return fields.finish();
}

}  // namespace squareq
