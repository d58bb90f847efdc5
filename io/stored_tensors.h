// The tensors of one part of a model as they lie in its files, and what quantised layers among them mean.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "io/safetensors.h"
#include "kernels/base/dtype.h"

namespace squareq {

struct StoredTensor {
  const SafetensorsFile* file = nullptr;
  const TensorInfo* info = nullptr;
};

// By name in the file, without the prefix of the part.
using StoredTensors = std::unordered_map<std::string, StoredTensor>;

// "file: tensor 'name'", as messages start.
std::string where(const StoredTensor& tensor);

// Throws FormatError naming the format if the tensors are quantised in a way that is not supported (NF4, NVFP4,
// SVDQuant), seen by the names that only such files have.
void refuse_unsupported_quantisation(const StoredTensors& tensors);

// The dtype that the weights of marked FP8 layers hold, whatever their container, by layer name (without ".weight").
// Marks: a tensor <layer>.comfy_quant, or the metadata key _quantization_metadata, whose layer names carry `prefix`.
// Throws FormatError naming the format of a layer if it is not an FP8 one.
std::map<std::string, DType> marked_layers(const StoredTensors& tensors, const std::string& prefix);

// The scale of each of the `rows` rows of weight `name`, from <layer>.scale_weight or <layer>.weight_scale, which hold
// one number or one a row; empty if there is neither. Throws FormatError on other shapes and on values not finite.
std::vector<float> row_scales(const StoredTensors& tensors, const std::string& name, std::int64_t rows);

}  // namespace squareq
