#include "engine/import_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "engine/config_table.h"
#include "engine/import_fields.h"
#include "engine/import_tree.h"
#include "io/file.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

using Json = ImportFields::Json;

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

std::string leaf_of(const std::string& path) {
  const std::string leaf = path.substr(path.rfind('.') + 1);
  return leaf.substr(0, leaf.find('['));
}

std::string value_text(const Json& value) {
  const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

// What the table of names says about a field without counterpart.
std::string known_reason(const std::string& path) {
  const std::string leaf = lower(leaf_of(path));
  for (const ForeignName& name : foreign_names()) {
    if (name.name == leaf && name.path.empty()) return std::string(name.note);
  }
  return "";
}

const ConfigField* our_field(const std::string& path) {
  const auto& fields = config_fields();
  const auto found = std::find_if(fields.begin(), fields.end(), [&](const ConfigField& f) { return f.path == path; });
  return found == fields.end() ? nullptr : &*found;
}

bool is_table(const Json& value) {
  return value.is_object() ||
         (value.is_array() && !value.empty() &&
          std::all_of(value.begin(), value.end(), [](const Json& entry) { return entry.is_object(); }));
}

}  // namespace

void ImportFields::add(const Json& tree, const std::string& prefix) {
  for (const auto& [key, value] : tree.items()) {
    const std::string path = tree.is_array() ? fmt::format("{}[{}]", prefix, key)
                                             : (prefix.empty() ? key : fmt::format("{}.{}", prefix, key));
    if (is_table(value)) {
      add(value, path);
    } else {
      fields_.push_back({.path = path, .value = value});
    }
  }
}

ImportFields::Field* ImportFields::find(const std::string& path) {
  const auto found = std::find_if(fields_.begin(), fields_.end(), [&](const Field& f) { return f.path == path; });
  return found == fields_.end() ? nullptr : &*found;
}

const Json* ImportFields::take(const std::string& path) {
  Field* field = find(path);
  if (field == nullptr) return nullptr;
  field->used = true;
  return &field->value;
}

const Json* ImportFields::peek(const std::string& path) const {
  const auto found = std::find_if(fields_.begin(), fields_.end(), [&](const Field& f) { return f.path == path; });
  return found == fields_.end() ? nullptr : &found->value;
}

void ImportFields::leave(const std::string& path, const std::string& why) {
  Field* field = find(path);
  if (field == nullptr) return;
  field->used = false;
  field->why = why;
}

void ImportFields::remark(const std::string& path, const std::string& text) {
  const Field* field = find(path);
  remarks_.push_back({path, field == nullptr ? "" : value_text(field->value), text});
}

bool ImportFields::set(const std::string& to, const Json& value) {
  const ConfigField* field = our_field(to);
  if (field == nullptr || !field->set(accepted_, value)) return false;
  ours_[to] = value;
  return true;
}

void ImportFields::set_from(const std::string& path, const std::string& to, const Json& value) {
  if (take(path) != nullptr && fits(path, to, value)) ours_[to] = value;
}

bool ImportFields::fits(const std::string& path, const std::string& to, const Json& value) {
  const ConfigField* field = our_field(to);
  if (field != nullptr && !value.is_null() && field->set(accepted_, value)) return true;
  const std::string reason = field == nullptr  ? ""
                             : value.is_null() ? fmt::format("{} has no such value", to)
                                               : fmt::format("{} takes {}", to, field->expected);
  leave(path, reason);
  return false;
}

Json ImportFields::converted(const Rule& rule, const std::string& path, const std::string& to) {
  const Json* found = take(path);
  if (found == nullptr) return nullptr;
  const Json value = rule.convert ? rule.convert(*found) : *found;
  return fits(path, to, value) ? value : Json();
}

void ImportFields::apply(const std::vector<Rule>& rules, const std::string& prefix) {
  for (const Rule& rule : rules) {
    const std::string to(rule.to);
    if (const Json value = converted(rule, prefix + std::string(rule.from), to); !value.is_null()) ours_[to] = value;
  }
}

Json ImportFields::folder(const std::vector<Rule>& rules, const std::vector<std::string>& prefixes) {
  Json entry = Json::object();
  for (const Rule& rule : rules) {
    const std::string to(rule.to);
    for (const std::string& prefix : prefixes) {
      const Json value = converted(rule, prefix + std::string(rule.from), "data." + to);
      if (!value.is_null() && !entry.contains(to)) entry[to] = value;
    }
  }
  return entry;
}

void ImportFields::set_folders(const std::vector<Json>& folders) {
  Json list = Json::array();
  for (const Json& folder : folders) {
    if (folder.contains("folder") && std::find(list.begin(), list.end(), folder) == list.end()) list.push_back(folder);
  }
  if (list.size() > 1) {
    ours_["data.folders"] = list;
  } else if (list.size() == 1) {
    for (const auto& [name, value] : list[0].items()) ours_["data." + name] = value;
  }
}

void ImportFields::set_default(const std::string& to, const Json& value, const std::string& trainer) {
  if (ours_.contains(to) || !set(to, value)) return;
  remarks_.push_back({to, value_text(value), "the default of " + trainer + ", which the file leaves out"});
}

ImportedConfig ImportFields::finish() const {
  Json json = Json::object();
  for (const ConfigField& field : config_fields()) {
    if (!ours_.contains(field.path)) continue;
    (field.section().empty() ? json[field.path] : json[field.section()][field.leaf()]) = ours_.at(field.path);
  }
  ImportedConfig result{.json = json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n", .remarks = remarks_};
  for (const Field& field : fields_) {
    if (field.used) continue;
    result.unused.push_back(
        {field.path, value_text(field.value), field.why.empty() ? known_reason(field.path) : field.why});
  }
  try {
    const TrainConfig config = parse_train_config(result.json, "the result");
    const auto model = ours_.find("model");
    std::error_code error;
    if (model != ours_.end() && !std::filesystem::exists(model->get<std::string>(), error)) {
      result.missing =
          fmt::format("field 'model': there is no {} here, put the model's folder or file", value_text(*model));
    }
  } catch (const ConfigError& error) {
    result.missing = error.what();
  }
  return result;
}

std::function<Json(const Json&)> spelled(std::vector<std::pair<std::string_view, Json>> choices) {
  return [choices = std::move(choices)](const Json& value) {
    if (!value.is_string()) return Json();
    const std::string text = lower(value.get<std::string>());
    for (const auto& [spelling, ours] : choices) {
      if (text == spelling) return ours;
    }
    return Json();
  };
}

Json dtype_of(const Json& value) {
  static const auto convert = spelled({{"float16", "f16"},
                                       {"fp16", "f16"},
                                       {"bfloat16", "bf16"},
                                       {"bf16", "bf16"},
                                       {"float32", "f32"},
                                       {"fp32", "f32"},
                                       {"float", "f32"}});
  return convert(value);
}

Json schedule_of(const Json& value) {
  static const auto convert = spelled(
      {{"constant", "constant"}, {"constant_with_warmup", "constant"}, {"linear", "linear"}, {"cosine", "cosine"}});
  return convert(value);
}

Json optimizer_of(const Json& value) {
  static const auto convert = spelled({{"adamw", "adamw"}, {"adamw8bit", "adamw8bit"}});
  return convert(value);
}

Json tag_orders_of(const Json& value) {
  if (!value.is_boolean()) return nullptr;
  return value.get<bool>() ? Json(8U) : Json(0U);  // each order costs text states
}

ImportedConfig import_config(ForeignTrainer trainer, const std::string& path) {
  const std::string text = read_text(path);
  const Json tree = trainer == ForeignTrainer::kKohya ? parse_toml(text, path) : parse_yaml(text, path);
  if (!tree.is_object()) throw FormatError({path, "no settings", "names and their values", ""});
  return trainer == ForeignTrainer::kKohya ? import_kohya(tree, path) : import_ai_toolkit(tree, path);
}

std::string import_report(const ImportedConfig& config) {
  std::string text;
  const auto list = [&](const char* title, const std::vector<ImportNote>& notes) {
    if (notes.empty()) return;
    text += fmt::format("{}\n", title);
    for (const ImportNote& note : notes) {
      text += fmt::format("  {}{}{}{}{}\n", note.field, note.value.empty() ? "" : " = ", note.value,
                          note.remark.empty() ? "" : ": ", note.remark);
    }
  };
  list("Taken over with a difference:", config.remarks);
  list("Without counterpart:", config.unused);
  if (!config.missing.empty()) text += fmt::format("Still needed: {}\n", config.missing);
  return text;
}

}  // namespace squareq
