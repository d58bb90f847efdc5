#include "engine/model_parts.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "io/file.h"
#include "kernels/base/error.h"

namespace squareq {
namespace fs = std::filesystem;
namespace {

nlohmann::json read_json(const std::string& path) {
  nlohmann::json json = nlohmann::json::parse(read_text(path), nullptr, false);
  if (!json.is_object()) {
    throw FormatError({.where = path, .found = "something else", .expected = "a JSON object"});
  }
  return json;
}

template <class T>
T number_or(const nlohmann::json& json, const char* key, T fallback, const std::string& path) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return fallback;
  if (!found->is_number()) {
    throw FormatError({.where = path + ": " + key, .found = found->dump(), .expected = "a number"});
  }
  return found->get<T>();
}

}  // namespace

ModelParts find_model_parts(const std::string& model) {
  if (!fs::exists(model)) {
    throw FileError({.where = model,
                     .found = "nothing",
                     .expected = "a model folder in diffusers layout or a checkpoint file",
                     .advice = "check the path"});
  }
  if (!fs::is_directory(model)) return {.transformer = model};
  const auto part = [&](const char* name) {
    const fs::path path = fs::path(model) / name;
    return fs::exists(path) ? path.string() : std::string();
  };
  ModelParts parts{.transformer = part("transformer"),
                   .vae = part("vae"),
                   .clip = part("text_encoder"),
                   .t5 = part("text_encoder_2"),
                   .scheduler = part("scheduler/scheduler_config.json")};
  if (!part("tokenizer").empty()) parts.tokenizers = model;
  return parts;
}

void require_part(const std::string& path, const char* field, const char* what) {
  if (!path.empty() && fs::exists(path)) return;
  throw FileError({.where = path.empty() ? std::string(field) : path,
                   .found = "no " + std::string(what),
                   .expected = "a path to it",
                   .advice = std::string("give the model folder, or name it with ") + field});
}

ScheduleShift read_schedule(const ModelParts& parts, bool guidance) {
  ScheduleShift shift{.dynamic = guidance};
  if (parts.scheduler.empty()) return shift;
  const nlohmann::json json = read_json(parts.scheduler);
  const auto dynamic = json.find("use_dynamic_shifting");
  if (dynamic != json.end() && dynamic->is_boolean()) shift.dynamic = dynamic->get<bool>();
  shift.constant = number_or(json, "shift", shift.constant, parts.scheduler);
  shift.base_shift = number_or(json, "base_shift", shift.base_shift, parts.scheduler);
  shift.max_shift = number_or(json, "max_shift", shift.max_shift, parts.scheduler);
  shift.base_tokens = number_or(json, "base_image_seq_len", shift.base_tokens, parts.scheduler);
  shift.max_tokens = number_or(json, "max_image_seq_len", shift.max_tokens, parts.scheduler);
  if (shift.max_tokens == shift.base_tokens || !(shift.constant > 0.0)) {
    throw FormatError({.where = parts.scheduler,
                       .found = "shift settings that cannot be used",
                       .expected = "shift > 0 and different base_image_seq_len and max_image_seq_len"});
  }
  return shift;
}

std::int64_t text_length(const ModelParts& parts, bool guidance) {
  const std::int64_t fallback = guidance ? 512 : 256;
  const std::string path = (fs::path(parts.tokenizers) / "tokenizer_2" / "tokenizer_config.json").string();
  if (parts.tokenizers.empty() || !fs::exists(path)) return fallback;
  // transformers writes 1e30 for "no limit".
  const double length = number_or(read_json(path), "model_max_length", 0.0, path);
  return length >= 1.0 && length <= 4096.0 ? static_cast<std::int64_t>(length) : fallback;
}

}  // namespace squareq
