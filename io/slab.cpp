#include "io/slab.h"

#include <fmt/format.h>

#include <algorithm>

#include "io/slab_header.h"
#include "io/slab_shape.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

[[noreturn]] void fail_missing(const std::string& path, std::string_view what, std::string_view name) {
  throw FormatError({.where = fmt::format("{}: {} '{}'", path, what, name),
                     .found = "nothing",
                     .expected = "it in the slab",
                     .advice = "the slab is of another network; inspect it with squareq-slab inspect"});
}

}  // namespace

Slab::Slab(const std::string& path) : map_(path) {
  SafetensorsHeader header = parse_safetensors(map_.bytes(), path);
  SlabIndex index = read_slab_index(header, map_.bytes(), path);
  const std::uint64_t end = index.blocks.back().offset + index.blocks.back().bytes;
  if (map_.bytes().size() != end) {
    throw FormatError({path, fmt::format("{} bytes", map_.bytes().size()), fmt::format("{} bytes", end),
                       "make the slab again with squareq-slab build"});
  }
  shape_ = index.shape;
  blocks_ = std::move(index.blocks);
  layers_ = std::move(index.layers);
  metadata_ = std::move(header.metadata);
  for (TensorInfo& tensor : header.tensors) {
    std::string name = tensor.name;
    tensors_.emplace(std::move(name), std::move(tensor));
  }
  for (std::size_t i = 0; i < layers_.size(); ++i) layer_index_.emplace(layers_[i].name, i);
}

const FluxShape& Slab::flux_shape() const {
  if (const auto* flux = std::get_if<FluxShape>(&shape_)) return *flux;
  throw ConfigError({path(), fmt::format("a slab of kind {}", kind_of(shape_)), "the slab of a FLUX transformer"});
}

const T5Shape& Slab::t5_shape() const {
  if (const auto* t5 = std::get_if<T5Shape>(&shape_)) return *t5;
  throw ConfigError({path(), fmt::format("a slab of kind {}", kind_of(shape_)), "the slab of a T5 encoder"});
}

const SlabBlock& Slab::block(std::string_view id) const {
  const auto found = std::find_if(blocks_.begin(), blocks_.end(), [&](const SlabBlock& b) { return b.id == id; });
  if (found == blocks_.end()) fail_missing(path(), "block", id);
  return *found;
}

bool Slab::has(std::string_view tensor) const { return tensors_.find(tensor) != tensors_.end(); }

const TensorInfo& Slab::tensor(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail_missing(path(), "tensor", name);
  return found->second;
}

std::uint64_t Slab::offset_of(std::string_view name) const { return tensor(name).begin; }

ConstView Slab::view(std::string_view name) const {
  const TensorInfo& info = tensor(name);
  const std::int64_t rows = info.shape.size() == 2 ? info.shape[0] : 1;
  return {map_.bytes().data() + info.begin, info.dtype, 1, rows, info.shape.back()};
}

Weight Slab::weight(std::string_view linear) const {
  const auto found = layer_index_.find(linear);
  if (found == layer_index_.end()) fail_missing(path(), "linear layer", linear);
  const std::string name(linear);
  Weight weight{.codec = layers_[found->second].codec, .values = view(name + ".weight")};
  if (weight.codec == Codec::kInt8Rows) weight.scales = view(name + ".weight.scale");
  if (has(name + ".bias")) weight.bias = view(name + ".bias");
  return weight;
}

ConstView Slab::vector(std::string_view tensor) const {
  const ConstView values = view(tensor);
  if (is_floating(values.dtype)) return values;
  throw FormatError({.where = fmt::format("{}: tensor '{}'", path(), tensor),
                     .found = std::string(name_of(values.dtype)),
                     .expected = "a float tensor",
                     .advice = "quantised layers are read with their scales"});
}

std::span<const std::byte> Slab::bytes(const SlabBlock& block) const {
  return map_.bytes().subspan(block.offset, block.bytes);
}

void Slab::verify_block(std::string_view id) const {
  const SlabBlock& expected = block(id);
  check_block(expected, checksum_of(bytes(expected)));
}

void Slab::verify_block(std::string_view id, const RandomAccessFile& file, std::span<std::byte> buffer) const {
  const SlabBlock& expected = block(id);
  Checksum checksum;
  for (std::uint64_t done = 0; done < expected.bytes;) {
    const std::span<std::byte> piece = buffer.first(std::min<std::uint64_t>(buffer.size(), expected.bytes - done));
    file.read(expected.offset + done, piece);
    checksum.add(piece);
    done += piece.size();
  }
  check_block(expected, checksum.text());
}

void Slab::check_block(const SlabBlock& block, const std::string& found) const {
  if (found == block.checksum) return;
  throw FormatError({.where = fmt::format("{}: block '{}'", path(), block.id),
                     .found = "checksum " + found,
                     .expected = "checksum " + block.checksum,
                     .advice = "the file is damaged; make it again with squareq-slab build"});
}

void Slab::verify_all() const {
  for (const SlabBlock& block : blocks_) verify_block(block.id);
}

}  // namespace squareq
