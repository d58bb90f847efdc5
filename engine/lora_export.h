// Adapters of an engine as a LoRA file.
#pragma once

#include <cstdint>
#include <ctime>
#include <string>

#include "engine/config.h"
#include "engine/flux_engine.h"

namespace squareq {

struct TrainingFacts {
  std::int64_t steps = 0;
  std::int64_t pictures = 0;
  std::time_t started = 0;
};

// Writes the trained adapters as the engine has them in the naming of save_format with what the run can say about
// itself (ss_*, sshs_* and modelspec.* metadata). Throws FileError.
void export_lora(const std::string& path, FluxEngine& engine, const TrainConfig& config, const TrainingFacts& facts);

}  // namespace squareq
