// LoRA files: those of kohya, diffusers/PEFT and their relatives are read into one form; those two namings are written.
// Effective weight: W + strength * (alpha / rank) * up * down.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/shapes.h"

namespace squareq {

// kKohya: "lora_unet_" modules under BFL names with lora_down, lora_up and alpha; fused projections are one module.
// kPeft: "transformer." modules under diffusers names with lora_A and lora_B; q, k, v and the MLP part of linear1 are
// modules of their own, and there is no alpha: all readers agree only where the scale is in the matrices.
enum class LoraNaming : std::uint8_t { kKohya, kPeft };

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
  std::optional<LoraNaming> naming;   // none: that of another program
  DType dtype = DType::F32;           // of the first matrix
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

// Writes adapters that arrange_adapters (io/lora_layout.h) has brought to `naming`: values as `dtype` (F32, F16 or
// BF16), alpha as F32. Adds sshs_model_hash and sshs_legacy_hash to the metadata. Throws FileError, and NumericError if
// a value is not finite in `dtype`.
void write_lora(const std::string& path, const std::vector<LoraAdapter>& adapters, const FluxShape& shape,
                LoraNaming naming, DType dtype, std::map<std::string, std::string> metadata);

// What sshs_model_hash says: lower-case SHA-256 over the tensor data of a file.
std::string model_hash(const std::string& path);

}  // namespace squareq
