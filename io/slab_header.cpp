#include "io/slab_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "io/slab_shape.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "squareq-slab";
// Ends of the header's own checksum. Inside a JSON string quotes are escaped, so no other text can look like it.
constexpr std::string_view kChecksumKey = R"("header_checksum":")";
constexpr const char* kAdvice = "make the slab again with squareq-slab build";

// Numbers in the index have a fixed width, so that the length of the header does not depend on them.
std::string error_text(double value) { return fmt::format("{:.6e}", std::abs(value) < 1e-98 ? 0.0 : value); }

std::string blocks_text(const SlabLayout& layout) {
  std::string text;
  for (const SlabBlock& block : layout.blocks) {
    text += fmt::format(R"({}{{"id":"{}","offset":{},"bytes":{},"xxh3_128":"{:0>{}}"}})", text.empty() ? "[" : ",",
                        block.id, block.offset, block.bytes, block.checksum, kChecksumDigits);
  }
  return text + "]";
}

std::string layers_text(const SlabLayout& layout) {
  std::string text = "[";
  for (const SlabLayer& layer : layout.layers) {
    text += fmt::format(R"({}{{"name":"{}","codec":"{}","relative_l2":{},"cosine":{},"max_abs":{}}})",
                        text.size() == 1 ? "" : ",", layer.name, name_of(layer.codec), error_text(layer.relative_l2),
                        error_text(layer.cosine), error_text(layer.max_abs));
  }
  return text + "]";
}

const std::string& metadata_field(const SafetensorsHeader& header, const std::string& key, const std::string& path) {
  const auto found = header.metadata.find(key);
  if (found == header.metadata.end()) {
    throw FormatError({path + ": metadata", "no field '" + key + "'", "a complete slab", kAdvice});
  }
  return found->second;
}

Json parse_field(const SafetensorsHeader& header, const std::string& key, const std::string& path) {
  Json json = Json::parse(metadata_field(header, key, path), nullptr, false);
  if (json.is_discarded()) throw FormatError({path + ": metadata " + key, "text that is not JSON", "JSON", kAdvice});
  return json;
}

void check_version(const SafetensorsHeader& header, const std::string& path) {
  const auto format = header.metadata.find("format");
  if (format == header.metadata.end() || format->second != kFormat) {
    throw FormatError({path, "a safetensors file that is not a slab", "a slab", "make one with squareq-slab build"});
  }
  const std::string& version = metadata_field(header, "version", path);
  if (version != std::to_string(kSlabVersion)) {
    throw FormatError({path, "a slab of version " + version, fmt::format("version {}", kSlabVersion), kAdvice});
  }
}

std::string shape_name(const TensorInfo& tensor) {
  const std::string dtype = tensor.unknown_dtype.empty() ? std::string(name_of(tensor.dtype)) : tensor.unknown_dtype;
  return dtype + " " + shape_text(tensor.shape);
}

// The layout says what must be there, the header what is.
void check_tensors(const SafetensorsHeader& header, const SlabLayout& layout, const std::string& path) {
  std::unordered_map<std::string, const TensorInfo*> found;
  for (const TensorInfo& tensor : header.tensors) found.emplace(tensor.name, &tensor);
  for (const SlabTensor& tensor : layout.tensors) {
    const std::string where = path + ": tensor '" + tensor.name + "'";
    const auto entry = found.find(tensor.name);
    if (entry == found.end()) throw FormatError({where, "nothing", "it in the slab", kAdvice});
    const TensorInfo& info = *entry->second;
    const TensorInfo expected{.name = tensor.name, .dtype = tensor.dtype, .shape = tensor.shape};
    if (!info.unknown_dtype.empty() || info.dtype != tensor.dtype || info.shape != tensor.shape) {
      throw FormatError({where, shape_name(info), shape_name(expected), kAdvice});
    }
    if (info.begin != header.data_begin + tensor.offset) {
      throw FormatError({where, fmt::format("offset {}", info.begin),
                         fmt::format("offset {}", header.data_begin + tensor.offset), kAdvice});
    }
    found.erase(entry);
  }
  if (!found.empty()) {
    throw FormatError({path, "a tensor '" + found.begin()->first + "'", "only tensors of the network", kAdvice});
  }
}

std::unordered_map<std::string, SlabLayer> read_layers(const Json& json, const std::string& path) {
  std::unordered_map<std::string, SlabLayer> layers;
  for (const Json& entry : json) {
    SlabLayer layer{.name = entry.at("name").get<std::string>(),
                    .relative_l2 = entry.at("relative_l2").get<double>(),
                    .cosine = entry.at("cosine").get<double>(),
                    .max_abs = entry.at("max_abs").get<double>()};
    const std::string codec = entry.at("codec").get<std::string>();
    const std::optional<Codec> known = codec_from_name(codec);
    if (!known)
      throw FormatError({path + ": layer '" + layer.name + "'", "codec '" + codec + "'", "'int8' or 'float'", kAdvice});
    layer.codec = *known;
    layers.emplace(layer.name, layer);
  }
  return layers;
}

void read_blocks(const Json& json, std::vector<SlabBlock>& blocks, const std::string& path) {
  if (json.size() != blocks.size()) {
    throw FormatError({path + ": block index", fmt::format("{} blocks", json.size()),
                       fmt::format("{} blocks", blocks.size()), kAdvice});
  }
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const Json& entry = json.at(i);
    SlabBlock& block = blocks[i];
    block.checksum = entry.at("xxh3_128").get<std::string>();
    const bool hex = block.checksum.size() == kChecksumDigits &&
                     block.checksum.find_first_not_of("0123456789abcdef") == std::string::npos;
    const auto offset = entry.at("offset").get<std::uint64_t>();
    const auto bytes = entry.at("bytes").get<std::uint64_t>();
    if (!hex || entry.at("id").get<std::string>() != block.id || offset != block.offset || bytes != block.bytes) {
      throw FormatError({path + ": block index", entry.dump(-1, ' ', false, Json::error_handler_t::replace),
                         fmt::format("block '{}' at {} with {} bytes and a checksum of {} hex digits", block.id,
                                     block.offset, block.bytes, kChecksumDigits),
                         kAdvice});
    }
  }
}

void check_header_checksum(const SafetensorsHeader& header, std::span<const std::byte> file, const std::string& path) {
  const std::string expected = metadata_field(header, "header_checksum", path);
  const std::string found = header_checksum(file.first(header.data_begin), path);
  if (found != expected) {
    throw FormatError({path + ": header", "checksum " + found, "checksum " + expected,
                       std::string("the file is damaged; ") + kAdvice});
  }
}

SlabIndex read_checked(const SafetensorsHeader& header, const std::string& path) {
  SlabIndex index;
  const std::string where = path + ": metadata shape";
  index.shape = shape_from_json(metadata_field(header, "kind", path), parse_field(header, "shape", path), where);
  check_shape(index.shape, where);
  // The network cannot have more blocks than the file has tensors; this bounds what is laid out below.
  if (block_count(index.shape) > static_cast<std::int64_t>(header.tensors.size())) {
    throw FormatError({where, fmt::format("{} blocks", block_count(index.shape)),
                       fmt::format("no more than the {} tensors of the file", header.tensors.size()), kAdvice});
  }
  std::unordered_map<std::string, const TensorInfo*> tensors;
  for (const TensorInfo& tensor : header.tensors) tensors.emplace(tensor.name, &tensor);
  const std::unordered_map<std::string, SlabLayer> stored = read_layers(parse_field(header, "layers", path), path);
  const auto layer_of = [&](const std::string& name) -> const SlabLayer& {
    const auto found = stored.find(name);
    if (found == stored.end()) throw FormatError({path + ": metadata layers", "no layer '" + name + "'", "", kAdvice});
    return found->second;
  };
  SlabLayout layout = lay_out_slab(
      index.shape, [&](const std::string& name) { return layer_of(name).codec; },
      [&](const std::string& name) {
        const auto found = tensors.find(name);
        return found == tensors.end() ? DType::F32 : found->second->dtype;
      });
  check_tensors(header, layout, path);
  if (header.data_begin % kSlabPage != 0) {
    throw FormatError({path, fmt::format("data at {}", header.data_begin), fmt::format("a multiple of {}", kSlabPage)});
  }
  read_blocks(parse_field(header, "blocks", path), layout.blocks, path);
  for (SlabBlock& block : layout.blocks) block.offset += header.data_begin;
  for (SlabLayer& layer : layout.layers) {
    const SlabLayer& errors = layer_of(layer.name);
    if (errors.codec != layer.codec) {
      throw FormatError({path + ": layer '" + layer.name + "'", "codec int8", "codec float", kAdvice});
    }
    layer.relative_l2 = errors.relative_l2;
    layer.cosine = errors.cosine;
    layer.max_abs = errors.max_abs;
  }
  index.blocks = std::move(layout.blocks);
  index.layers = std::move(layout.layers);
  return index;
}

}  // namespace

std::string tensors_header(std::span<const TensorInfo> tensors, const std::map<std::string, std::string>& metadata,
                           std::uint64_t alignment) {
  std::string text = R"({"__metadata__":)" + Json(metadata).dump();
  for (const TensorInfo& tensor : tensors) {
    const Json entry{
        {"dtype", name_of(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {tensor.begin, tensor.end}}};
    text += "," + Json(tensor.name).dump() + ":" + entry.dump();
  }
  text += "}";
  constexpr std::size_t kLengthBytes = 8;
  text.resize((kLengthBytes + text.size() + alignment - 1) / alignment * alignment - kLengthBytes, ' ');
  std::string length;
  for (std::size_t i = 0; i < kLengthBytes; ++i) length += static_cast<char>((text.size() >> (8 * i)) & 0xFFU);
  return length + text;
}

std::string slab_header(const SlabShape& shape, const SlabLayout& layout, const std::string& source) {
  const std::map<std::string, std::string> metadata{
      {"format", kFormat},
      {"version", std::to_string(kSlabVersion)},
      {"kind", std::string(kind_of(shape))},
      {"shape", shape_to_json(shape).dump()},
      {"blocks", blocks_text(layout)},
      {"layers", layers_text(layout)},
      {"source_xxh3_128", fmt::format("{:0>{}}", source, kChecksumDigits)},
      {"quantizer", R"({"scale":"max_abs_of_row/127","rounding":"half_to_even","clamp":127,"zero_row_scale":1})"},
      {"header_checksum", std::string(kChecksumDigits, '0')}};
  std::vector<TensorInfo> tensors;
  tensors.reserve(layout.tensors.size());
  for (const SlabTensor& t : layout.tensors) {
    tensors.push_back(
        {.name = t.name, .dtype = t.dtype, .shape = t.shape, .begin = t.offset, .end = t.offset + t.bytes});
  }
  std::string header = tensors_header(tensors, metadata, kSlabPage);
  const std::string checksum = header_checksum(std::as_bytes(std::span(header)), "slab");
  header.replace(header.find(kChecksumKey) + kChecksumKey.size(), kChecksumDigits, checksum);
  return header;
}

std::string header_checksum(std::span<const std::byte> header, const std::string& path) {
  std::string text(header.size(), '\0');
  std::transform(header.begin(), header.end(), text.begin(), [](std::byte b) { return static_cast<char>(b); });
  const std::size_t key = text.find(kChecksumKey);
  if (key == std::string::npos || text.size() - key < kChecksumKey.size() + kChecksumDigits) {
    throw FormatError({path + ": header", "no checksum of the header", "one", kAdvice});
  }
  text.replace(key + kChecksumKey.size(), kChecksumDigits, kChecksumDigits, '0');
  return checksum_of(std::as_bytes(std::span(text)));
}

SlabIndex read_slab_index(const SafetensorsHeader& header, std::span<const std::byte> file, const std::string& path) {
  check_version(header, path);
  check_header_checksum(header, file, path);
  try {
    return read_checked(header, path);
  } catch (const Json::exception& error) {
    throw FormatError({path + ": metadata", error.what(), "the fields of a slab", kAdvice});
  }
}

}  // namespace squareq
