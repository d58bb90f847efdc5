// LoRA files: those of kohya, diffusers/PEFT and their relatives are read into one form; kohya's is written, since
// every program accepts it. Effective weight: W + strength * (alpha / rank) * up * down.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/shapes.h"

namespace squareq {

// One pair of matrices on a range of output rows of a linear layer.
struct LoraAdapter {
  std::string linear;  // BFL name: "double_blocks.0.img_attn.qkv"
  std::int64_t row_begin = 0;
  std::int64_t rows = 0;
  std::int64_t in = 0;
  std::int64_t rank = 0;
  float alpha = 0.0F;
  std::vector<float> down;  // [rank, in]
  std::vector<float> up;    // [rows, rank]

  float scale() const { return alpha / static_cast<float>(rank); }
};

struct LoraFile {
  std::string path;
  std::vector<LoraAdapter> adapters;  // ordered by name of the linear, then by row
  std::vector<std::string> unmapped;  // tensors that belong to no linear of the transformer (text encoders, say)
  std::map<std::string, std::string> metadata;
};

// Throws FormatError on files that are no LoRA, on kinds that are not supported (DoRA, LoKr, LoHa, convolutions in
// three parts, bias or full differences), on values that are not finite, and if an adapter does not fit `shape`.
LoraFile read_lora(const std::string& path, const FluxShape& shape);

// What a LoRA file says about itself. Empty strings are left out.
struct LoraMetadata {
  std::int64_t rank = 0;
  double alpha = 0.0;
  bool guidance = true;       // FLUX.1-dev and its relatives; false: schnell
  std::string output_name;    // file name without folder and ending
  std::string base_model;     // name of the base model's file or folder
  std::int64_t width = 1024;  // training resolution
  std::int64_t height = 1024;
  std::int64_t finished_at = 0;              // Unix seconds; 0: not said
  std::string implementation_version;        // "squareq/0.1.0"
  std::map<std::string, std::string> extra;  // further "ss_*" and "modelspec.*" entries, taken as they are
};
std::map<std::string, std::string> lora_metadata(const LoraMetadata& about);

// Writes kohya's naming, values as `dtype` (F32, F16 or BF16), alpha as F32. Several adapters on one linear become one
// block-diagonal adapter (exact). Adapters whose `up` is zero everywhere do nothing and are left out, unless all are.
// Adds sshs_model_hash and sshs_legacy_hash to the metadata. Throws FileError, and NumericError if a value is not
// finite in `dtype`.
void write_lora(const std::string& path, const std::vector<LoraAdapter>& adapters, const FluxShape& shape, DType dtype,
                std::map<std::string, std::string> metadata);

}  // namespace squareq
