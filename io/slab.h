// The slab: all weights of one network in one file, quantised, checked and laid out for streaming. docs/slab.md
// describes the format; any safetensors reader opens the file.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "io/random_access_file.h"
#include "io/safetensors.h"
#include "kernels/base/shapes.h"
#include "kernels/base/view.h"

namespace squareq {

// The network whose weights a slab holds.
using SlabShape = std::variant<FluxShape, T5Shape>;

// A run of tensors that is read and streamed as a whole. Blocks follow each other without gaps, in execution order.
struct SlabBlock {
  std::string id;            // "embed", "modulation.double_blocks.0", "double_blocks.0", "encoder.block.3", ...
  std::uint64_t offset = 0;  // in the file, a multiple of kSlabPage
  std::uint64_t bytes = 0;   // padding included, a multiple of kSlabPage
  std::string checksum;      // XXH3-128 of these bytes, 32 hex digits
  std::vector<std::string> tensors;
};

// How one linear layer is stored, and what that costs. Errors compare the stored weights with the source's.
struct SlabLayer {
  std::string name;  // "double_blocks.0.img_attn.qkv"
  std::string block;
  Codec codec = Codec::kFloat;
  std::int64_t out = 0;
  std::int64_t in = 0;
  double relative_l2 = 0.0;
  double cosine = 1.0;
  double max_abs = 0.0;
};

inline constexpr std::uint64_t kSlabPage = 4096;      // alignment of the data and of every block
inline constexpr std::uint64_t kSlabAlignment = 256;  // of every tensor
inline constexpr int kSlabVersion = 1;

// A slab opened for reading. The file stays mapped while the object lives, and the views point into the map. Opening
// validates everything but the data: version, header checksum, block index, and name, type, shape and place of every
// tensor against the shape of the network. The data is checked by verify_block. Const members may be called from
// several threads.
class Slab {
 public:
  // Throws FileError if the file cannot be read, FormatError if it is not an intact slab of this version.
  explicit Slab(const std::string& path);

  const std::string& path() const { return map_.path(); }
  const SlabShape& shape() const { return shape_; }
  const FluxShape& flux_shape() const;  // ConfigError if it is a slab of another network
  const T5Shape& t5_shape() const;      // likewise

  const std::vector<SlabBlock>& blocks() const { return blocks_; }
  const SlabBlock& block(std::string_view id) const;  // FormatError if there is none
  const std::vector<SlabLayer>& layers() const { return layers_; }
  std::uint64_t data_offset() const { return blocks_.front().offset; }
  std::uint64_t file_bytes() const { return map_.bytes().size(); }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  bool has(std::string_view tensor) const;
  // Linear layer "X": values [1, out, in] of X.weight, scales of X.weight.scale, bias of X.bias if there is one.
  // FormatError naming the tensor if there is none.
  Weight weight(std::string_view linear) const;
  // Float tensor by its full name: [n] is [1, 1, n], [r, c] is [1, r, c]. FormatError if there is none.
  ConstView vector(std::string_view tensor) const;
  // The bytes of a block, from a page boundary.
  std::span<const std::byte> bytes(const SlabBlock& block) const;

  // Where a tensor starts in the file. FormatError if there is none.
  std::uint64_t offset_of(std::string_view tensor) const;

  // Reads the block and compares its checksum. FormatError names block, found and expected checksum.
  void verify_block(std::string_view id) const;
  // The same through `file`, which is this slab, with `buffer` for pieces of it.
  void verify_block(std::string_view id, const RandomAccessFile& file, std::span<std::byte> buffer) const;
  // verify_block for all blocks: together with the checks at opening no byte of the file is left out.
  void verify_all() const;

 private:
  const TensorInfo& tensor(std::string_view name) const;
  ConstView view(std::string_view tensor) const;
  void check_block(const SlabBlock& block, const std::string& found) const;

  MappedFile map_;
  SlabShape shape_;
  std::vector<SlabBlock> blocks_;
  std::vector<SlabLayer> layers_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, TensorInfo, std::less<>> tensors_;
  std::map<std::string, std::size_t, std::less<>> layer_index_;
};

}  // namespace squareq
