// Where everything lies in a slab: follows from the shape of the network, the codec of every layer and the type of
// every float tensor. Writing and reading both start from here.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/slab.h"
#include "io/tensor_names.h"
#include "kernels/base/dtype.h"

namespace squareq {

// What is stored under one name. A linear layer "X" in INT8 is X.weight (kValues) and X.weight.scale (kScales).
enum class SlabRole : std::uint8_t { kFloat, kValues, kScales, kPadding };

struct SlabTensor {
  std::string name;
  SlabRole role = SlabRole::kFloat;
  DType dtype = DType::F32;
  std::vector<std::int64_t> shape;
  std::uint64_t offset = 0;  // from the start of the data
  std::uint64_t bytes = 0;
  std::size_t block = 0;
};

struct SlabLayout {
  std::vector<SlabTensor> tensors;  // in the order of the file, padding included
  std::vector<SlabBlock> blocks;    // offsets from the start of the data, without checksums
  std::vector<SlabLayer> layers;    // without errors
  std::uint64_t bytes = 0;
};

// `codec_of` is asked for every linear layer inside the blocks, `dtype_of` for every matrix that is stored as floats;
// vectors are F32, and so is what it does not answer with F16 or BF16.
SlabLayout lay_out_slab(const SlabShape& shape, const std::function<Codec(const std::string& layer)>& codec_of,
                        const std::function<DType(const std::string& tensor)>& dtype_of);

// Tensors of the network in execution order.
std::vector<NamedShape> slab_tensors(const SlabShape& shape);

// Refuses sizes that no network has, before anything is computed from them. Throws FormatError.
void check_shape(const SlabShape& shape, const std::string& where);

std::string_view name_of(Codec codec);                        // "int8", "float"
std::optional<Codec> codec_from_name(std::string_view name);  // nullopt when unknown

}  // namespace squareq
