#include "io/lora_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "io/checkpoint.h"
#include "io/lora_layout.h"
#include "io/safetensors.h"
#include "io/tensor_names.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

using Json = nlohmann::json;

constexpr const char* kPeftKey = "lora_adapter_metadata";
constexpr std::string_view kPeftPrefix = "transformer.";

// Rows of a linear layer that a module name in a LoRA file stands for.
struct Target {
  const LinearSize* linear;
  std::int64_t row_begin;
  std::int64_t rows;
};

using Targets = std::unordered_map<std::string, Target>;

// By BFL and by diffusers module name, each with dots and with underscores.
Targets targets_by_name(const std::vector<LinearSize>& linears, const FluxShape& shape) {
  Targets targets;
  const auto add = [&](std::string name, const Target& target) {
    targets.emplace(name, target);
    std::replace(name.begin(), name.end(), '.', '_');
    targets.emplace(std::move(name), target);
  };
  for (const LinearSize& linear : linears) {
    add(linear.name, {&linear, 0, linear.out});
    for (const ModulePart& part : module_parts(linear.name, linear.out, shape)) {
      add(part.module, {&linear, part.row_begin, part.rows});
    }
  }
  return targets;
}

void refuse_other_kinds(const SafetensorsFile& file) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 13> kSigns{{
      {"dora_scale", "a DoRA"},
      {"lora_magnitude_vector", "a DoRA"},
      {"lora_mid", "a LoRA in three parts (lora_mid)"},
      {"hada_w", "a LoHa"},
      {"hada_t", "a LoHa"},
      {"lokr_w", "a LoKr"},
      {"lokr_t", "a LoKr"},
      {"oft_", "an OFT adapter"},
      {"lora_B.bias", "a LoRA with biases"},
      {"lora_up.bias", "a LoRA with biases"},
      {".diff_b", "full differences (diff_b)"},
      {".diff", "full differences (diff)"},
      {"reshape_weight", "a LoRA that changes shapes"},
  }};
  for (const TensorInfo& tensor : file.tensors()) {
    for (const auto& [part, kind] : kSigns) {
      const bool found =
          part.starts_with(".") ? tensor.name.ends_with(part) : tensor.name.find(part) != std::string::npos;
      if (found) {
        throw FormatError({fmt::format("{}: tensor '{}'", file.path(), tensor.name), std::string(kind),
                           "a LoRA of two matrices a layer", "this kind of adapter is not supported"});
      }
    }
  }
}

// The tensors of one module, as the file names it.
struct Tensors {
  const TensorInfo* down = nullptr;
  const TensorInfo* up = nullptr;
  const TensorInfo* alpha = nullptr;
};

std::map<std::string, Tensors> group_by_module(const SafetensorsFile& file, std::vector<std::string>& unmapped) {
  static constexpr std::array<std::pair<std::string_view, const TensorInfo * Tensors::*>, 7> kSuffixes{{
      {".lora_down.weight", &Tensors::down},
      {".lora_up.weight", &Tensors::up},
      {".lora_A.weight", &Tensors::down},
      {".lora_B.weight", &Tensors::up},
      {".lora_A.default.weight", &Tensors::down},
      {".lora_B.default.weight", &Tensors::up},
      {".alpha", &Tensors::alpha},
  }};
  std::map<std::string, Tensors> modules;
  for (const TensorInfo& tensor : file.tensors()) {
    const auto suffix =
        std::find_if(kSuffixes.begin(), kSuffixes.end(), [&](const auto& s) { return tensor.name.ends_with(s.first); });
    if (suffix == kSuffixes.end()) {
      unmapped.push_back(tensor.name);
      continue;
    }
    const TensorInfo*& place =
        modules[tensor.name.substr(0, tensor.name.size() - suffix->first.size())].*suffix->second;
    if (place != nullptr) {
      throw FormatError({fmt::format("{}: tensors '{}' and '{}'", file.path(), place->name, tensor.name),
                         "two spellings of one matrix", "one naming a file", ""});
    }
    place = &tensor;
  }
  return modules;
}

std::string without_prefix(const std::string& module) {
  for (const std::string_view prefix : {"lora_unet_", "lora_transformer_", "transformer.", "model.diffusion_model.",
                                        "diffusion_model.", "base_model.model."}) {
    if (module.starts_with(prefix)) return module.substr(prefix.size());
  }
  return module;
}

// A module of a block that the model has not got belongs to another model, which is worth more than a warning.
void check_block_index(const std::string& path, const std::string& module, const FluxShape& shape) {
  const std::string name = without_prefix(module);
  const std::pair<std::string_view, std::int64_t> families[] = {{"double_blocks", shape.double_blocks},
                                                                {"single_blocks", shape.single_blocks},
                                                                {"transformer_blocks", shape.double_blocks},
                                                                {"single_transformer_blocks", shape.single_blocks}};
  for (const auto& [family, count] : families) {
    if (!name.starts_with(family) || name.size() < family.size() + 2) continue;
    const std::string rest = name.substr(family.size() + 1);
    const std::string digits = rest.substr(0, rest.find_first_not_of("0123456789"));
    if (digits.empty() || (digits.size() < 10 && std::stoll(digits) < count)) continue;
    throw FormatError({fmt::format("{}: module '{}'", path, module), "block " + digits,
                       fmt::format("one of the model's {} blocks", count), "the LoRA is for another model"});
  }
}

// What PEFT notes in the header about adapters of the transformer.
class PeftSettings {
 public:
  explicit PeftSettings(const SafetensorsFile& file)
      : place_(fmt::format("{}: __metadata__ '{}'", file.path(), kPeftKey)) {
    const auto found = file.metadata().find(kPeftKey);
    if (found == file.metadata().end()) return;
    try {
      json_ = Json::parse(found->second);
    } catch (const Json::exception& error) {
      throw FormatError({place_, error.what(), "a JSON object", ""});
    }
    if (!json_.is_object()) throw FormatError({place_, "JSON that is no object", "a JSON object", ""});
    if (flag("use_dora")) throw FormatError({place_, "use_dora", "a plain LoRA", "DoRA is not supported"});
  }

  // Alpha for scale = alpha / rank; nullopt if nothing is said.
  std::optional<float> alpha(const std::string& module, std::int64_t rank) const {
    const Json* value = find("lora_alpha");
    if (const Json* patterns = find("alpha_pattern"); patterns != nullptr && patterns->is_object()) {
      for (const auto& [pattern, alpha] : patterns->items()) {
        if (module == pattern || module.ends_with("." + pattern)) value = &alpha;
      }
    }
    if (value == nullptr) return std::nullopt;
    if (!value->is_number()) throw FormatError({place_ + " lora_alpha", value->type_name(), "a number", ""});
    const float alpha = value->get<float>();
    return flag("use_rslora") ? alpha * std::sqrt(static_cast<float>(rank)) : alpha;
  }

 private:
  const Json* find(const char* key) const {
    const auto found = json_.find(std::string(kPeftPrefix) + key);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }
  bool flag(const char* key) const {
    const Json* value = find(key);
    return value != nullptr && value->is_boolean() && value->get<bool>();
  }

  std::string place_;
  Json json_ = Json::object();
};

std::vector<std::int64_t> matrix_shape(const SafetensorsFile& file, const TensorInfo& tensor) {
  std::vector<std::int64_t> shape = tensor.shape;
  while (shape.size() > 2 && shape.back() == 1) shape.pop_back();  // stored as a 1x1 convolution
  if (shape.size() == 2 && is_floating(file.get(tensor.name).dtype)) return shape;
  throw FormatError({fmt::format("{}: tensor '{}'", file.path(), tensor.name),
                     fmt::format("{} {}", name_of(tensor.dtype), shape_text(tensor.shape)), "a matrix of floats", ""});
}

std::vector<float> read_values(const SafetensorsFile& file, const TensorInfo& tensor) {
  std::vector<float> values = file.read_f32(tensor.name);
  file.check_whole();
  check_finite(values, fmt::format("{}: tensor '{}'", file.path(), tensor.name));
  return values;
}

float read_alpha(const SafetensorsFile& file, const std::string& module, const Tensors& tensors, std::int64_t rank,
                 const PeftSettings& peft) {
  std::optional<float> said;
  if (module.starts_with(kPeftPrefix)) said = peft.alpha(module.substr(kPeftPrefix.size()), rank);
  std::string place = fmt::format("{}: __metadata__ '{}'", file.path(), kPeftKey);
  if (tensors.alpha != nullptr) {
    place = fmt::format("{}: tensor '{}'", file.path(), tensors.alpha->name);
    if (said) throw FormatError({place, fmt::format("alpha also in metadata '{}'", kPeftKey), "one of the two", ""});
    const std::vector<float> values = file.read_f32(tensors.alpha->name);
    if (values.size() != 1) throw FormatError({place, "shape " + shape_text(tensors.alpha->shape), "one number", ""});
    said = values[0];
  }
  const float alpha = said.value_or(static_cast<float>(rank));
  if (!(alpha > 0.0F) || !std::isfinite(alpha)) {
    throw FormatError({place, fmt::format("alpha {}", alpha), "a positive number", ""});
  }
  return alpha;
}

LoraAdapter read_adapter(const SafetensorsFile& file, const std::string& module, const Tensors& tensors,
                         const Target& target, const PeftSettings& peft) {
  if (tensors.down == nullptr || tensors.up == nullptr) {
    throw FormatError({fmt::format("{}: module '{}'", file.path(), module),
                       tensors.up != nullptr ? "no down matrix" : "no up matrix", "both matrices", ""});
  }
  const std::vector<std::int64_t> down = matrix_shape(file, *tensors.down);
  const std::vector<std::int64_t> up = matrix_shape(file, *tensors.up);
  const auto expect = [&](const TensorInfo& tensor, bool right, const std::string& expected) {
    if (right) return;
    throw FormatError({fmt::format("{}: tensor '{}'", file.path(), tensor.name), "shape " + shape_text(tensor.shape),
                       expected, "the LoRA does not fit the model"});
  };
  const LinearSize& linear = *target.linear;
  expect(*tensors.down, down[0] > 0 && down[1] == linear.in, fmt::format("[rank, {}]", linear.in));
  expect(*tensors.up, up[0] == target.rows && up[1] == down[0], fmt::format("[{}, {}]", target.rows, down[0]));
  LoraAdapter adapter{.linear = linear.name,
                      .row_begin = target.row_begin,
                      .rows = target.rows,
                      .in = linear.in,
                      .rank = down[0],
                      .alpha = read_alpha(file, module, tensors, down[0], peft),
                      .down = read_values(file, *tensors.down),
                      .up = read_values(file, *tensors.up)};
  if (without_prefix(module).starts_with("norm_out")) {  // the diffusers name: halves swapped
    swap_halves(adapter.up);
  }
  return adapter;
}

// The naming that every module of the file follows, if it is one of those written here.
std::optional<LoraNaming> naming_of(const std::map<std::string, Tensors>& modules) {
  const auto all = [&](std::string_view prefix, std::string_view suffix) {
    return std::all_of(modules.begin(), modules.end(), [&](const auto& entry) {
      const auto& [module, tensors] = entry;
      return module.starts_with(prefix) && (tensors.down == nullptr || tensors.down->name.ends_with(suffix));
    });
  };
  if (all("lora_", ".lora_down.weight")) return LoraNaming::kKohya;
  if (all(kPeftPrefix, ".lora_A.weight")) return LoraNaming::kPeft;
  return std::nullopt;
}

void check_apart(const std::string& path, const std::vector<LoraAdapter>& sorted) {
  for (std::size_t i = 1; i < sorted.size(); ++i) {
    const LoraAdapter& a = sorted[i - 1];
    const LoraAdapter& b = sorted[i];
    if (a.linear != b.linear || a.row_begin + a.rows <= b.row_begin) continue;
    throw FormatError({fmt::format("{}: '{}'", path, a.linear), "two adapters on the same rows", "one",
                       "the file mixes two namings"});
  }
}

}  // namespace

LoraFile read_lora(const std::string& path, const FluxShape& shape) {
  const SafetensorsFile file(path);
  refuse_other_kinds(file);
  const std::vector<LinearSize> linears = flux_linears(shape);
  const Targets targets = targets_by_name(linears, shape);
  const PeftSettings peft(file);
  LoraFile lora{.path = path, .metadata = file.metadata()};
  const std::map<std::string, Tensors> modules = group_by_module(file, lora.unmapped);
  lora.naming = naming_of(modules);
  for (const auto& [module, tensors] : modules) {
    const auto target = targets.find(without_prefix(module));
    if (target != targets.end()) {
      if (lora.adapters.empty() && tensors.down != nullptr) lora.dtype = tensors.down->dtype;
      lora.adapters.push_back(read_adapter(file, module, tensors, target->second, peft));
      continue;
    }
    check_block_index(path, module, shape);
    for (const TensorInfo* tensor : {tensors.down, tensors.up, tensors.alpha}) {
      if (tensor != nullptr) lora.unmapped.push_back(tensor->name);
    }
  }
  if (lora.adapters.empty()) {
    throw FormatError({path, "no LoRA matrices for a FLUX transformer",
                       "tensors like 'lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight' or "
                       "'transformer.transformer_blocks.0.attn.to_q.lora_A.weight'",
                       ""});
  }
  std::sort(lora.adapters.begin(), lora.adapters.end(), [](const LoraAdapter& a, const LoraAdapter& b) {
    return std::pair(a.linear, a.row_begin) < std::pair(b.linear, b.row_begin);
  });
  check_apart(path, lora.adapters);
  std::sort(lora.unmapped.begin(), lora.unmapped.end());
  return lora;
}

}  // namespace squareq
