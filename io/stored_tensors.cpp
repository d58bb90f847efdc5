#include "io/stored_tensors.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "kernels/base/error.h"

namespace squareq {
namespace {

using Json = nlohmann::json;

constexpr const char* kUseOther = "use a BF16, F16, F32 or FP8 (E4M3) file";
constexpr const char* kQuantisationKey = "_quantization_metadata";

std::optional<std::string> layer_of(const std::string& name, std::string_view suffix) {
  if (!name.ends_with(suffix)) return std::nullopt;
  return name.substr(0, name.size() - suffix.size());
}

// {"format": "float8_e4m3fn", ...}
DType dtype_of_mark(const Json& mark, const std::string& place) {
  const auto format = mark.is_object() ? mark.find("format") : mark.end();
  if (!mark.is_object() || format == mark.end() || !format->is_string()) {
    throw FormatError({place, "no 'format'", "the name of a quantisation format", ""});
  }
  const auto name = format->get<std::string>();
  if (name == "float8_e4m3fn") return DType::F8_E4M3;
  if (name == "float8_e5m2") return DType::F8_E5M2;
  throw FormatError({place, fmt::format("quantisation format '{}'", name), "float8_e4m3fn", kUseOther});
}

Json parse(std::string_view text, const std::string& place) {
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    throw FormatError({place, error.what(), "JSON", "the file is damaged"});
  }
}

void add_layers_of_metadata(const SafetensorsFile& file, const std::string& prefix, std::map<std::string, DType>& to) {
  const auto found = file.metadata().find(kQuantisationKey);
  if (found == file.metadata().end()) return;
  const std::string place = fmt::format("{}: __metadata__ '{}'", file.path(), kQuantisationKey);
  const Json json = parse(found->second, place);
  const auto layers = json.is_object() ? json.find("layers") : json.end();
  if (!json.is_object() || layers == json.end() || !layers->is_object()) {
    throw FormatError({place, "no 'layers'", "a JSON object with 'layers'", "the file is damaged"});
  }
  for (const auto& [layer, mark] : layers->items()) {
    if (!layer.starts_with(prefix)) continue;  // of another part of the model
    to[layer.substr(prefix.size())] = dtype_of_mark(mark, fmt::format("{}: layer '{}'", place, layer));
  }
}

}  // namespace

std::string where(const StoredTensor& tensor) {
  return fmt::format("{}: tensor '{}'", tensor.file->path(), tensor.info->name);
}

void refuse_unsupported_quantisation(const StoredTensors& tensors) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 9> kSigns{{
      {".quant_state.bitsandbytes__nf4", "NF4 weights (bitsandbytes)"},
      {".quant_state.bitsandbytes__fp4", "FP4 weights (bitsandbytes)"},
      {".absmax", "NF4 or FP4 weights (bitsandbytes)"},
      {".SCB", "INT8 weights (bitsandbytes)"},
      {".qweight", "packed integer weights (SVDQuant, GPTQ or AWQ)"},
      {".wscales", "packed integer weights (SVDQuant)"},
      {".weight_scale_2", "NVFP4 weights (weight_scale_2)"},
      {".pre_quant_scale", "weights with smoothed inputs (pre_quant_scale)"},
      {".weight_scale_inv", "weights with block-wise scales (weight_scale_inv)"},
  }};
  for (const auto& [name, tensor] : tensors) {
    for (const auto& [suffix, format] : kSigns) {
      if (name.ends_with(suffix)) {
        throw FormatError({where(tensor), std::string(format), "weights in a supported format", kUseOther});
      }
    }
  }
}

std::map<std::string, DType> marked_layers(const StoredTensors& tensors, const std::string& prefix) {
  std::map<std::string, DType> layers;
  std::set<const SafetensorsFile*> files;
  for (const auto& [name, tensor] : tensors) {
    if (files.insert(tensor.file).second) add_layers_of_metadata(*tensor.file, prefix, layers);
    const std::optional<std::string> layer = layer_of(name, ".comfy_quant");
    if (!layer) continue;
    const std::span<const std::byte> bytes = tensor.file->data(*tensor.info);
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    layers[*layer] = dtype_of_mark(parse(text, where(tensor)), where(tensor));
  }
  return layers;
}

std::vector<float> row_scales(const StoredTensors& tensors, const std::string& name, std::int64_t rows) {
  const std::optional<std::string> layer = layer_of(name, ".weight");
  if (!layer) return {};
  auto found = tensors.find(*layer + ".scale_weight");
  if (found == tensors.end()) found = tensors.find(*layer + ".weight_scale");
  if (found == tensors.end()) return {};
  const StoredTensor& scale = found->second;
  const std::vector<std::int64_t>& shape = scale.info->shape;
  using Shape = std::vector<std::int64_t>;
  const bool single = shape.empty() || shape == Shape{1} || shape == Shape{1, 1};
  if (!single && shape != Shape{rows} && shape != Shape{rows, 1}) {
    throw FormatError({where(scale), "scales of shape " + shape_text(shape),
                       fmt::format("one scale, or [{0}] or [{0}, 1]", rows), kUseOther});
  }
  std::vector<float> values = scale.file->read_f32(scale.info->name);
  for (const float value : values) {
    if (!std::isfinite(value)) throw FormatError({where(scale), fmt::format("{}", value), "finite scales", ""});
  }
  if (single) values.resize(static_cast<std::size_t>(rows), values[0]);
  return values;
}

}  // namespace squareq
