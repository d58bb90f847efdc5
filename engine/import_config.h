// Settings files of other trainers turned into ours.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace squareq {

enum class ForeignTrainer { kAiToolkit, kKohya };

// A setting that could not be taken over, or not as it is.
struct ImportNote {
  std::string field;   // path in the other file ("config.process[0].train.optimizer")
  std::string value;   // as JSON, shortened
  std::string remark;  // may be empty: there is no counterpart
};

struct ImportedConfig {
  std::string json;                 // in our form, fields in the order of docs/config.md
  std::vector<ImportNote> unused;   // in the order of the other file
  std::vector<ImportNote> remarks;  // about settings that were taken over, and defaults of the other trainer put in
  std::string missing;              // what the result still needs before it can be used; empty if nothing
};

// kAiToolkit: a job file in YAML. kKohya: TOML for --config_file, with the dataset_config it names or contains. Where a
// default of the other trainer means something else than ours, it is written out. Paths are taken as they are. Throws
// FileError and FormatError.
ImportedConfig import_config(ForeignTrainer trainer, const std::string& path);

// What the programs print: one line a note.
std::string import_report(const ImportedConfig& config);

}  // namespace squareq
