// LoRA files applied to an engine as frozen adapters.
#pragma once

#include <string>
#include <vector>

#include "engine/flux_engine.h"
#include "io/lora_file.h"

namespace squareq {

struct SavedLoras {
  std::vector<LoraTarget> targets;    // for FluxRun
  std::vector<LoraAdapter> adapters;  // the values of each target

  // Copies the values into an engine made with `targets`.
  void upload(FluxEngine& engine) const;
};

// FILE or FILE:STRENGTH, as options take it: a number, 1 by default; a file of that whole name comes first. Throws
// ConfigError for a strength that is no number.
struct LoraEntry {
  std::string path;
  double strength = 1.0;
};
LoraEntry parse_lora_entry(const std::string& text);

// Reads a LoRA file and warns of tensors that are not for the transformer. Throws what read_lora throws.
LoraFile read_lora_warning(const std::string& path, const FluxShape& shape);

// Throws what parse_lora_entry and read_lora throw.
SavedLoras load_loras(const std::vector<std::string>& entries, const FluxShape& shape);

// Gives the trained adapters of an engine, which have their first values already, those of a LoRA file. An adapter of
// larger rank keeps its first values in the terms that are over. Throws ConfigError if the file does something that the
// adapters cannot: where none is, or with a larger rank.
void start_from_lora(FluxEngine& engine, const std::string& path);

}  // namespace squareq
