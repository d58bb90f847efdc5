// The table behind engine/config.h: one row a field. Parsing, validation, written-out settings and documentation all
// read these rows.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/config.h"

namespace squareq {

struct ConfigField {
  std::string path;      // "lora.rank"
  std::string expected;  // "an integer from 1 to 4096"
  std::string doc;
  bool required = false;
  bool per_folder = false;  // of section `data`, may also stand in an entry of `data.folders`
  bool kept = false;        // decides what is trained: may not change when a run is resumed
  std::string absent;  // what happens when the field is not given and has no value by default ("built in `cache_dir`")
  std::function<bool(TrainConfig&, const nlohmann::ordered_json&)> set;  // false if the value is not as expected
  std::function<nlohmann::ordered_json(const TrainConfig&)> get;         // null if there is no value
  nlohmann::ordered_json schema;                                         // JSON Schema of the value
  std::function<std::string*(TrainConfig&)> file_path = [](TrainConfig&) { return nullptr; };  // for paths

  std::string section() const { return path.substr(0, path.find('.') == std::string::npos ? 0 : path.find('.')); }
  std::string leaf() const { return path.substr(path.rfind('.') + 1); }
};

// A name that another trainer uses. `path` is our field, or empty where there is none and `note` says why.
struct ForeignName {
  std::string_view name;
  std::string_view path;
  std::string_view note;
};

const std::vector<ConfigField>& config_fields();
const std::vector<ForeignName>& foreign_names();

}  // namespace squareq
