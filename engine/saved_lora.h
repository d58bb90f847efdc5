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

// Each entry is FILE or FILE:STRENGTH (a number, 1 by default; a file of that whole name comes first). Warns of tensors
// that are not for the transformer. Throws what read_lora throws, and ConfigError for a strength that is no number.
SavedLoras load_loras(const std::vector<std::string>& entries, const FluxShape& shape);

}  // namespace squareq
