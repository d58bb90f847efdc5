#include "engine/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <regex>
#include <set>

#include "engine/config_table.h"
#include "io/file.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

using Json = nlohmann::ordered_json;

// At most `limit` bytes of a text for a message, never ending inside a UTF-8 sequence, without control characters.
std::string shortened(std::string_view text, std::size_t limit) {
  std::size_t end = std::min(limit, text.size());
  while (end > 0 && end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;
  std::string result(text.substr(0, end));
  for (char& c : result) c = static_cast<unsigned char>(c) < 0x20 ? '?' : c;
  return end < text.size() ? result + "..." : result;
}

std::string place(const std::string& source, std::string_view field) {
  return fmt::format("{}: field '{}'", source, shortened(field, 80));
}

std::string described(const Json& value) {
  if (value.is_string()) return fmt::format("the text \"{}\"", shortened(value.get_ref<const std::string&>(), 60));
  if (value.is_object()) return "a section { }";
  if (value.is_array()) {
    const bool numbers = std::all_of(value.begin(), value.end(), [](const Json& v) { return v.is_number(); });
    if (numbers && value.size() <= 8) return value.dump();
    return fmt::format("a list of {} entries", value.size());
  }
  return value.dump();  // null, true, false or a number
}

// Steps to turn one word into the other by inserting, deleting or replacing a letter.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replace = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replace});
    }
  }
  return row.back();
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

std::vector<std::string> sections() {
  std::vector<std::string> names;
  for (const ConfigField& field : config_fields()) {
    const std::string section = field.section();
    if (!section.empty() && (names.empty() || names.back() != section)) names.push_back(section);
  }
  return names;
}

std::string nearest_name(std::string_view path) {
  const std::string wanted = lower(shortened(path, 64));
  const std::string wanted_leaf = wanted.substr(wanted.rfind('.') + 1);
  std::string best;
  std::size_t best_distance = SIZE_MAX;
  const auto consider = [&](const std::string& name, std::size_t distance) {
    if (distance < best_distance) {
      best_distance = distance;
      best = name;
    }
  };
  for (const ConfigField& field : config_fields()) consider(field.path, edit_distance(wanted, field.path));
  for (const std::string& section : sections()) consider(section, edit_distance(wanted, section));
  for (const ConfigField& field : config_fields()) consider(field.path, edit_distance(wanted_leaf, field.leaf()) + 1);
  return best;
}

// What to say about a name that no field has.
std::string advice_for(std::string_view path) {
  const std::string leaf = lower(path.substr(path.rfind('.') + 1));
  for (const ConfigField& field : config_fields()) {
    if (leaf == field.leaf()) {
      return field.section().empty() ? fmt::format("'{}' stands outside of all sections", field.path)
                                     : fmt::format("'{}' belongs into the section '{}'", leaf, field.section());
    }
  }
  for (const ForeignName& foreign : foreign_names()) {
    if (leaf != foreign.name) continue;
    return foreign.path.empty() ? fmt::format("{} is not used here: {}", foreign.name, foreign.note)
                                : fmt::format("{} is called {} here", foreign.name, foreign.path);
  }
  return fmt::format("did you mean '{}'?", nearest_name(path));
}

[[noreturn]] void unknown_field(const std::string& source, const std::string& path) {
  throw ConfigError({place(source, path), "an unknown name", "one of docs/config.md", advice_for(path)});
}

// Field `path`, which messages call `shown`.
void set_field(TrainConfig& config, const std::string& path, const std::string& shown, const Json& value) {
  for (const ConfigField& field : config_fields()) {
    if (field.path != path) continue;
    if (!field.set(config, value)) {
      throw ConfigError({place(config.source, shown), described(value), field.expected, ""});
    }
    return;
  }
  unknown_field(config.source, shown);
}

// nlohmann::json keeps the last of two equal names; here they are an error.
Json parse_json(std::string_view text, const std::string& source) {
  std::vector<std::set<std::string>> names;
  const auto watch = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) names.emplace_back();
    if (event == Json::parse_event_t::object_end) names.pop_back();
    if (event == Json::parse_event_t::key && !names.back().insert(parsed.get<std::string>()).second) {
      throw ConfigError({place(source, parsed.get<std::string>()), "a name used twice", "each name once", ""});
    }
    return true;
  };
  try {
    return Json::parse(text, watch, true, true);
  } catch (const Json::parse_error& e) {
    const std::string_view before = text.substr(0, std::min(text.size(), e.byte > 0 ? e.byte - 1 : 0));
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const std::size_t column = before.size() - (before.rfind('\n') + 1) + 1;  // npos + 1 is 0
    throw ConfigError({fmt::format("{}: line {}, column {}", source, line, column),
                       before.size() == text.size() ? "the end of the text" : "text that is not JSON", "JSON",
                       "look for a missing comma, quote or bracket just before"});
  } catch (const Json::exception&) {
    throw ConfigError({source, "a number too large to represent", "JSON", ""});
  }
}

constexpr const char* kFolders = "data.folders";  // its entries are read when the defaults of all are known

void read_fields(TrainConfig& config, const Json& json) {
  if (!json.is_object()) throw ConfigError({config.source, described(json), "an object { } of settings", ""});
  const std::vector<std::string> known = sections();
  for (const auto& [name, value] : json.items()) {
    if (name == "$schema") continue;  // for editors
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      set_field(config, name, name, value);
      continue;
    }
    if (!value.is_object()) {
      throw ConfigError({place(config.source, name), described(value), "a section { } of settings", ""});
    }
    for (const auto& [leaf, inner] : value.items()) {
      const std::string path = fmt::format("{}.{}", name, leaf);
      if (path != kFolders) set_field(config, path, path, inner);
    }
  }
}

std::string absolute_path(const std::string& path, const std::string& source) {
  namespace fs = std::filesystem;
  return (fs::absolute(fs::path(source).parent_path() / ".") / path).lexically_normal().string();
}

void make_paths_absolute(TrainConfig& config) {
  for (const ConfigField& field : config_fields()) {
    std::string* path = field.file_path(config);
    if (path != nullptr && !path->empty()) *path = absolute_path(*path, config.source);
  }
}

// One entry of data.folders on top of the defaults in config.data.
FolderConfig read_folder(const TrainConfig& config, const Json& entry, const std::string& shown) {
  if (!entry.is_object()) throw ConfigError({place(config.source, shown), described(entry), "a section { }", ""});
  TrainConfig one = config;
  for (const auto& [leaf, value] : entry.items()) {
    const std::string path = fmt::format("data.{}", leaf);
    const std::string inner = fmt::format("{}.{}", shown, leaf);
    const bool allowed = std::any_of(config_fields().begin(), config_fields().end(),
                                     [&](const ConfigField& field) { return field.per_folder && field.path == path; });
    if (!allowed) unknown_field(config.source, inner);
    set_field(one, path, inner, value);
  }
  if (one.data.folder.empty()) {
    throw ConfigError({place(config.source, shown + ".folder"), "nothing", "a path", "every entry names a folder"});
  }
  make_paths_absolute(one);
  return one.data;
}

void read_folders(TrainConfig& config, const Json& json) {
  const auto section = json.find("data");
  const bool listed = section != json.end() && section->contains("folders");
  if (!listed) {
    if (config.data.folder.empty()) {
      throw ConfigError({place(config.source, "data.folder"), "nothing", "a path",
                         "name the folder of pictures, or several in 'data.folders'"});
    }
    config.data.folders = {config.data};
    return;
  }
  const Json& list = section->at("folders");
  if (!list.is_array() || list.empty() || list.size() > 256) {
    throw ConfigError({place(config.source, kFolders), described(list),
                       "a list of 1 to 256 sections { } that each name a folder", ""});
  }
  if (!config.data.folder.empty()) {
    throw ConfigError({place(config.source, kFolders), "both 'folder' and 'folders'", "one of them",
                       "make the folder another entry of 'folders'"});
  }
  for (std::size_t i = 0; i < list.size(); ++i) {
    config.data.folders.push_back(read_folder(config, list[i], fmt::format("{}[{}]", kFolders, i)));
  }
}

// A model in one file is a transformer alone; a folder has every part.
void require_parts(const TrainConfig& c) {
  std::error_code error;
  const bool whole = !c.model.empty() && !std::filesystem::is_regular_file(c.model, error);
  const auto require = [&](const std::string& path, const char* name, bool present) {
    if (present || !path.empty()) return;
    throw ConfigError(
        {place(c.source, name), "nothing", "a path", "needed unless 'model' is a folder that has every part"});
  };
  require(c.transformer, "transformer", !c.model.empty() || !c.slab.empty());
  require(c.vae, "vae", whole);
  require(c.clip, "clip", whole);
  require(c.t5, "t5", whole);
  require(c.tokenizers, "tokenizers", whole);
}

void check_together(const TrainConfig& c) {
  for (const ConfigField& field : config_fields()) {
    if (field.required && field.get(c).is_null()) {
      throw ConfigError({place(c.source, field.path), "nothing", field.expected, "this field has no default"});
    }
  }
  require_parts(c);
  if (c.data.fixed_size[0] == 0 && c.data.resolution.front() < c.data.bucket_step) {
    throw ConfigError({place(c.source, "data.resolution"), std::to_string(c.data.resolution.front()),
                       fmt::format("at least data.bucket_step = {}", c.data.bucket_step), "lower data.bucket_step"});
  }
  if (!(c.training.sigma_min < c.training.sigma_max)) {
    throw ConfigError({place(c.source, "training.sigma_min"), fmt::format("{}", c.training.sigma_min),
                       fmt::format("less than training.sigma_max = {}", c.training.sigma_max), ""});
  }
  if (c.training.warmup_steps > c.training.steps) {
    throw ConfigError({place(c.source, "training.warmup_steps"), std::to_string(c.training.warmup_steps),
                       fmt::format("at most training.steps = {}", c.training.steps), ""});
  }
}

}  // namespace

TrainConfig parse_train_config(std::string_view json, const std::string& source) {
  TrainConfig config;
  config.source = source;
  const Json parsed = parse_json(json, source);
  read_fields(config, parsed);
  make_paths_absolute(config);
  read_folders(config, parsed);
  check_together(config);
  if (!(config.lora.alpha > 0.0)) config.lora.alpha = static_cast<double>(config.lora.rank);
  return config;
}

TrainConfig load_train_config(const std::string& path) { return parse_train_config(read_text(path), path); }

std::string to_json(const TrainConfig& config) {
  Json json = Json::object();
  for (const ConfigField& field : config_fields()) {
    const Json value = field.get(config);
    if (value.is_null()) continue;
    (field.section().empty() ? json[field.path] : json[field.section()][field.leaf()]) = value;
  }
  return json.dump(2) + "\n";
}

std::string setting_text(const TrainConfig& config, std::string_view path) {
  for (const ConfigField& field : config_fields()) {
    if (field.path != path) continue;
    const Json value = field.get(config);
    if (value.is_null()) return {};
    return value.is_string() ? value.get<std::string>() : value.dump();
  }
  throw std::logic_error(fmt::format("no setting {}", path));
}

std::vector<ConfigChange> config_changes(const TrainConfig& before, const TrainConfig& after) {
  const auto text = [](const Json& value) { return value.is_null() ? std::string("nothing") : value.dump(); };
  std::vector<ConfigChange> changes;
  for (const ConfigField& field : config_fields()) {
    const Json a = field.get(before);
    const Json b = field.get(after);
    if (a != b) changes.push_back({.path = field.path, .before = text(a), .after = text(b), .kept = field.kept});
  }
  return changes;
}

bool is_lora_target(const LoraConfig& lora, std::string_view linear) {
  if (lora.preset.empty()) {
    return std::any_of(lora.patterns.begin(), lora.patterns.end(), [&](const std::string& pattern) {
      return std::regex_match(linear.begin(), linear.end(), std::regex(pattern));
    });
  }
  static const std::regex attention(R"(double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)|single_blocks\.\d+\.linear1)");
  static const std::regex mlp(R"(double_blocks\.\d+\.(img|txt)_mlp\.[02]|single_blocks\.\d+\.linear2)");
  static const std::regex modulation(R"(double_blocks\.\d+\.(img|txt)_mod\.lin|single_blocks\.\d+\.modulation\.lin)");
  const auto is = [&](const std::regex& group) { return std::regex_match(linear.begin(), linear.end(), group); };
  if (is(attention)) return true;
  if (is(mlp)) return lora.preset != "attention";
  return lora.preset == "all-linear" && is(modulation);
}

}  // namespace squareq
