// The settings of another trainer as a list of fields, which are taken one by one; what is left is reported.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/config.h"
#include "engine/import_config.h"

namespace squareq {

class ImportFields {
 public:
  using Json = nlohmann::ordered_json;

  // Every value of the tree that is no table and no list of tables, under its path: "model.name",
  // "datasets[0].resolution".
  void add(const Json& tree, const std::string& prefix);

  // The value, which counts as used from then on; nullptr if there is none.
  const Json* take(const std::string& path);
  // The same, without that.
  const Json* peek(const std::string& path) const;
  // Says why a field is not used.
  void leave(const std::string& path, const std::string& why);
  void remark(const std::string& path, const std::string& text);

  // Sets our field `to`, if it exists and accepts the value.
  bool set(const std::string& to, const Json& value);
  // The same with a value that comes from `path`, which is left if it does not fit.
  void set_from(const std::string& path, const std::string& to, const Json& value);

  // One line of a table: their field, ours, and how the value changes on the way (null: no counterpart).
  struct Rule {
    std::string_view from;
    std::string_view to;
    std::function<Json(const Json&)> convert;
  };
  // Takes over what the rules name under `prefix`; values without counterpart are reported as unused.
  void apply(const std::vector<Rule>& rules, const std::string& prefix);

  // The same for one folder of pictures, whose fields are those of data marked as of a folder: `to` is the last part of
  // the name. Each is looked for under the prefixes in turn, the first that has it counts.
  Json folder(const std::vector<Rule>& rules, const std::vector<std::string>& prefixes);
  // One folder fills the section data, several its list of folders; a folder that comes again is the same.
  void set_folders(const std::vector<Json>& folders);

  // Sets our field where nothing has set it, and says that the other trainer's default is meant.
  void set_default(const std::string& to, const Json& value, const std::string& trainer);

  ImportedConfig finish() const;

 private:
  struct Field {
    std::string path;
    Json value;
    bool used = false;
    std::string why;  // it is not used
  };
  Field* find(const std::string& path);
  // Whether our field `to` accepts the value; if not, `path` is left with the reason.
  bool fits(const std::string& path, const std::string& to, const Json& value);
  // The value of a field for ours, as a rule has it; null, with the reason noted, where it does not fit.
  Json converted(const Rule& rule, const std::string& path, const std::string& to);

  std::vector<Field> fields_;
  std::vector<ImportNote> remarks_;
  Json ours_ = Json::object();  // by full path
  TrainConfig accepted_;
};

// A value by its spelling in lower case: {"fp16", "f16"}, ...; null for others.
std::function<ImportFields::Json(const ImportFields::Json&)> spelled(
    std::vector<std::pair<std::string_view, ImportFields::Json>> choices);

// What both trainers' files do with the same values.
ImportFields::Json dtype_of(const ImportFields::Json& value);     // "float16" and its relatives
ImportFields::Json schedule_of(const ImportFields::Json& value);  // "cosine", "constant_with_warmup"
ImportFields::Json optimizer_of(const ImportFields::Json& value);
ImportFields::Json tag_orders_of(const ImportFields::Json& value);  // of "shuffle the tags in every draw"

// `source` names the file in messages, and its folder is where others are looked for.
ImportedConfig import_ai_toolkit(const ImportFields::Json& tree, const std::string& source);
ImportedConfig import_kohya(const ImportFields::Json& tree, const std::string& source);

}  // namespace squareq
