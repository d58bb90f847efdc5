// The header of a slab: a safetensors header whose metadata describe the network and guard every byte of the file.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "io/checksum.h"
#include "io/safetensors.h"
#include "io/slab_layout.h"

namespace squareq {

// Length field and JSON of a safetensors file whose tensors follow without gaps (TensorInfo::begin and end count from
// the start of the data); padded with spaces so that the data starts at a multiple of `alignment`.
std::string tensors_header(std::span<const TensorInfo> tensors, const std::map<std::string, std::string>& metadata,
                           std::uint64_t alignment);

// The header that goes before the data, checksum of itself included. Its length depends on the layout alone, not on
// checksums or errors, so that its place can be reserved before they are known. `source` is the hash of the weights
// that the slab was made from.
std::string slab_header(const SlabShape& shape, const SlabLayout& layout, const std::string& source);

// What the metadata of an opened file say, checked against its tensors.
struct SlabIndex {
  SlabShape shape;
  std::vector<SlabBlock> blocks;  // offsets in the file
  std::vector<SlabLayer> layers;
};

// `file` holds at least the header. Throws FormatError: not a slab, another version, damaged header, metadata that do
// not parse, tensors that are missing, unexpected, misshapen or misplaced.
SlabIndex read_slab_index(const SafetensorsHeader& header, std::span<const std::byte> file, const std::string& path);

// The checksum of a header: that of its bytes with the digits of the checksum set to '0'. Throws FormatError if
// it has no place for them.
std::string header_checksum(std::span<const std::byte> header, const std::string& path);

}  // namespace squareq
