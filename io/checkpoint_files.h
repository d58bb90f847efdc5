// Where a part of a model lies: finds its files below whatever path a person gives.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "io/checkpoint.h"

namespace squareq {

struct PartFiles {
  std::string path;                           // the file or the index
  std::map<std::string, std::string> shards;  // tensor name to file; empty for a single file
};

// nullopt if the folder has no file for the part. Throws FileError if there is no such path, FormatError if the choice
// is ambiguous, the index is not valid, or the file is of a known kind that is not supported (GGUF, PyTorch).
std::optional<PartFiles> find_part(const std::string& path, Model kind);

}  // namespace squareq
