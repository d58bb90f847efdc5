// Where the parts of a FLUX model lie, and what its own files say about their use.
#pragma once

#include <cstdint>
#include <string>

#include "model/flow_match.h"

namespace squareq {

// Paths of the parts; empty where a model has none.
struct ModelParts {
  std::string transformer;
  std::string vae;
  std::string clip;
  std::string t5;
  std::string tokenizers;  // folder that holds tokenizer/ and tokenizer_2/
  std::string scheduler;   // scheduler_config.json; empty: the defaults of FLUX.1-dev
};

// `model` is a folder in diffusers layout (its subfolders are the parts) or one checkpoint file (the transformer).
// Throws FileError if it is not there.
ModelParts find_model_parts(const std::string& model);

// Throws FileError naming the part and the config field that gives it, if one of the parts is missing.
void require_part(const std::string& path, const char* field, const char* what);

// Shift rule of scheduler_config.json; missing keys take the defaults of FLUX.1-dev. A model without guidance and
// without a scheduler file (FLUX.1-schnell) is not shifted.
ScheduleShift read_schedule(const ModelParts& parts, bool guidance);

// Number of T5 tokens the model was made for: model_max_length of tokenizer_2/tokenizer_config.json if it is a sane
// number, else 512, or 256 without guidance (FLUX.1-schnell).
std::int64_t text_length(const ModelParts& parts, bool guidance);

}  // namespace squareq
