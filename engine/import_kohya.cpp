// kohya's sd-scripts: TOML for --config_file, whose sections mean nothing, and a data set file in TOML.
#include <fmt/format.h>

#include <charconv>
#include <filesystem>

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

// 512, "512" and "512,768" (width, height); also lists.
Json resolution_of(const Json& value) {
  if (!value.is_string()) return value;
  const Json sides = argument_value(value.get<std::string>());
  const auto whole = [](const Json& side) {
    return side.is_number() ? Json(static_cast<std::int64_t>(side.get<double>())) : side;
  };
  if (!sides.is_array()) return whole(sides);
  Json result = Json::array();
  for (const Json& side : sides) result.push_back(whole(side));
  return result;
}

Json train_blocks_of(const Json& value) {
  static const auto convert = spelled({{"all", "all-linear"},
                                       {"double", Json::array({R"(double_blocks\.\d+\..*)"})},
                                       {"single", Json::array({R"(single_blocks\.\d+\..*)"})}});
  return convert(value);
}

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
      {"train_data_dir", "data.folder", {}},
      {"resolution", "data.resolution", resolution_of},
      {"t5xxl_max_token_length", "data.text_length", {}},
      {"network_dim", "lora.rank", {}},
      {"network_alpha", "lora.alpha", {}},
      {"network_weights", "lora.start_from", {}},
      {"network_args.train_blocks", "lora.targets", train_blocks_of},
      {"network_args.split_qkv", "lora.split_qkv", {}},
      {"max_train_steps", "training.steps", {}},
      {"train_batch_size", "training.batch_size", {}},
      {"gradient_accumulation_steps", "training.accumulation", {}},
      {"gradient_checkpointing", "training.activation_checkpointing", {}},
      {"seed", "training.seed", {}},
      {"learning_rate", "training.learning_rate", {}},
      {"unet_lr", "training.learning_rate", {}},
      {"lr_scheduler", "training.lr_schedule", schedule_of},
      {"lr_warmup_steps", "training.warmup_steps", {}},
      {"optimizer_args.weight_decay", "training.weight_decay", {}},
      {"optimizer_args.betas", "training.betas", {}},
      {"optimizer_args.eps", "training.epsilon", {}},
      {"max_grad_norm", "training.max_grad_norm", {}},
      {"timestep_sampling", "training.timestep_sampling",
       spelled({{"uniform", "uniform"}, {"sigmoid", "sigmoid"}, {"shift", "shift"}, {"flux_shift", "flux_shift"}})},
      {"sigmoid_scale", "training.sigmoid_scale", {}},
      {"logit_mean", "training.logit_mean", {}},
      {"logit_std", "training.logit_std", {}},
      {"discrete_flow_shift", "training.shift", {}},
      {"guidance_scale", "training.guidance", {}},
  };
  return table;
}

// Settings that say what is the case here anyway.
void take_matching(ImportFields& fields, const std::string& data) {
  const auto expect = [&](const std::string& path, const Json& value) {
    const Json* found = fields.take(path);
    if (found != nullptr && *found != value) fields.leave(path, "");
  };
  expect("network_module", "networks.lora_flux");
  expect("network_train_unet_only", true);
  expect("save_model_as", "safetensors");
  expect("model_prediction_type", "raw");
  expect("loss_type", "l2");
  expect("optimizer_type", "AdamW");
  expect("weighting_scheme", "none");
  expect("apply_t5_attn_mask", false);
  expect("shuffle_caption", false);
  expect("caption_extension", ".txt");
  for (const std::string& place : {data + "general.", data + "datasets[0].", data + "datasets[0].subsets[0]."}) {
    expect(place + "caption_extension", ".txt");
    expect(place + "shuffle_caption", false);
    expect(place + "num_repeats", 1);
  }
}

// Adds the data set file that the settings name; returns what its fields start with.
std::string add_dataset_file(ImportFields& fields, const std::string& source) {
  const Json* named = fields.take("dataset_config");
  if (named == nullptr || !named->is_string()) return "";
  const fs::path name(named->get<std::string>());
  const fs::path beside = fs::path(source).parent_path() / name;
  const fs::path path = fs::exists(beside) ? beside : name;
  if (!fs::exists(path)) {
    fields.leave("dataset_config", "there is no such file, so data.folder and data.resolution are not known");
    return "";
  }
  const std::string prefix = path.filename().string() + ": ";
  const Json tree = parse_toml(read_text(path.string()), path.string());
  for (const auto& [key, value] : tree.items()) fields.add(Json{{prefix + key, value}}, "");
  return prefix;
}

}  // namespace

ImportedConfig import_kohya(const Json& tree, const std::string& source) {
  ImportFields fields;
  fields.add(without_sections(tree), "");
  const std::string data = add_dataset_file(fields, source);
  fields.apply(rules(), "");
  // What a data set says of its own stands above the general.
  for (const char* place : {"general.", "datasets[0]."}) {
    fields.apply({{"resolution", "data.resolution", resolution_of}, {"batch_size", "training.batch_size", {}}},
                 data + place);
  }
  fields.apply({{"image_dir", "data.folder", {}}}, data + "datasets[0].subsets[0].");
  take_matching(fields, data);
  // Its adapters sit on every linear of the blocks, with q, k and v as one.
  const char* kohya = "sd-scripts";
  fields.set_default("lora.targets", "all-linear", kohya);
  fields.set_default("lora.rank", 4, kohya);
  fields.set_default("lora.alpha", 1.0, kohya);
  fields.set_default("training.steps", 1600, kohya);
  fields.set_default("training.learning_rate", 2e-6, kohya);
  fields.set_default("training.guidance", 3.5, kohya);
  if (fields.take("timestep_sampling") == nullptr) {
    fields.set("training.timestep_sampling", "uniform");
    fields.remark("timestep_sampling",
                  "sd-scripts then draws uniformly and shifts by discrete_flow_shift; here uniform, "
                  "without a shift");
  }
  return fields.finish();
}

}  // namespace squareq
