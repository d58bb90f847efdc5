#include "io/checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <utility>

#include "io/checkpoint_files.h"
#include "io/file.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

struct Anchor {
  std::string_view name;  // a tensor that every file of the part has
  Naming naming;
};

std::vector<Anchor> anchors(Model kind) {
  switch (kind) {
    case Model::kTransformer: return {{"img_in.weight", Naming::kCanonical}, {"x_embedder.weight", Naming::kDiffusers}};
    case Model::kT5: return {{"encoder.block.0.layer.0.SelfAttention.q.weight", Naming::kCanonical}};
    case Model::kClip: return {{"embeddings.token_embedding.weight", Naming::kCanonical}};
    case Model::kVae:
      return {{"decoder.mid.block_1.norm1.weight", Naming::kCanonical},
              {"decoder.mid_block.resnets.0.norm1.weight", Naming::kDiffusers}};
  }
  return {};
}

std::int64_t rows_of(const std::vector<std::int64_t>& shape) { return shape.empty() ? 1 : shape[0]; }

std::int64_t columns_of(const std::vector<std::int64_t>& shape) {
  std::int64_t n = 1;
  for (std::size_t i = 1; i < shape.size(); ++i) n *= shape[i];
  return n;
}

Json parse_config(std::string_view text, const std::string& place) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::exception& error) {
    throw FormatError({place, error.what(), "a JSON object", ""});
  }
  if (!json.is_object()) throw FormatError({place, "JSON that is no object", "a JSON object", ""});
  return json;
}

}  // namespace

std::string name_of(Model kind) {
  switch (kind) {
    case Model::kTransformer: return "transformer";
    case Model::kT5: return "T5 encoder";
    case Model::kClip: return "CLIP text encoder";
    case Model::kVae: return "autoencoder";
  }
  return "";
}

void check_finite(std::span<const float> values, const std::string& place) {
  const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
  if (bad == values.end()) return;
  throw FormatError(
      {place, fmt::format("{} at element {}", *bad, bad - values.begin()), "finite values", "the weights are damaged"});
}

Checkpoint Checkpoint::open(const std::string& path, Model kind) {
  std::optional<Checkpoint> checkpoint = try_open(path, kind);
  if (checkpoint) return std::move(*checkpoint);
  std::vector<std::string> names;
  for (const Anchor& anchor : anchors(kind)) names.push_back(fmt::format("'{}'", anchor.name));
  throw FormatError({path, fmt::format("no {}", name_of(kind)),
                     fmt::format("safetensors files with a tensor {}", fmt::join(names, " or ")), ""});
}

bool Checkpoint::holds(const std::string& path, Model kind) { return try_open(path, kind).has_value(); }

std::optional<Checkpoint> Checkpoint::try_open(const std::string& path, Model kind) {
  const std::optional<PartFiles> part = find_part(path, kind);
  if (!part) return std::nullopt;
  Checkpoint checkpoint;
  checkpoint.kind_ = kind;
  checkpoint.path_ = part->path;
  if (!checkpoint.take_part(checkpoint.read_files(part->shards))) return std::nullopt;
  checkpoint.refuse_relatives();
  refuse_unsupported_quantisation(checkpoint.tensors_);
  checkpoint.marked_ = marked_layers(checkpoint.tensors_, checkpoint.prefix_);
  checkpoint.read_config();
  return checkpoint;
}

StoredTensors Checkpoint::read_files(const std::map<std::string, std::string>& shards) {
  StoredTensors all;
  if (shards.empty()) {
    files_.push_back(std::make_shared<SafetensorsFile>(path_));
    for (const TensorInfo& info : files_[0]->tensors()) all[info.name] = {files_[0].get(), &info};
    return all;
  }
  std::map<std::string, const SafetensorsFile*> opened;
  for (const auto& [tensor, path] : shards) {
    const SafetensorsFile*& file = opened[path];
    if (file == nullptr) {
      std::error_code error;
      if (!fs::exists(path, error)) {
        throw FileError({path, "no such file", "a shard that the index names", path_});
      }
      files_.push_back(std::make_shared<SafetensorsFile>(path));
      file = files_.back().get();
    }
    const TensorInfo* info = file->find(tensor);
    if (info == nullptr) {
      throw FormatError(
          {fmt::format("{}: tensor '{}'", path, tensor), "no such tensor", "the tensor, as the index says", path_});
    }
    all[tensor] = {file, info};
  }
  return all;
}

// Keeps the tensors of this part, under their names without its prefix; false if the part is not there.
bool Checkpoint::take_part(const StoredTensors& all) {
  std::vector<std::pair<std::string, Naming>> found;
  for (const Anchor& anchor : anchors(kind_)) {
    for (const auto& [name, tensor] : all) {
      if (!name.ends_with(anchor.name)) continue;
      std::string prefix = name.substr(0, name.size() - anchor.name.size());
      if (prefix.empty() || prefix.ends_with(".")) found.emplace_back(std::move(prefix), anchor.naming);
    }
  }
  if (kind_ == Model::kClip && found.size() > 1) {  // checkpoints of other families bring a second, larger CLIP
    std::erase_if(found, [](const auto& candidate) { return candidate.first.find("clip_l") == std::string::npos; });
  }
  if (found.empty()) return false;
  if (found.size() > 1) {
    throw FormatError({path_, fmt::format("several networks: '{}' and '{}'", found[0].first, found[1].first),
                       fmt::format("one {}", name_of(kind_)), ""});
  }
  std::tie(prefix_, naming_) = found[0];
  for (const auto& [name, tensor] : all) {
    if (!name.starts_with(prefix_)) continue;
    source_names_.push_back(name.substr(prefix_.size()));
    tensors_[source_names_.back()] = tensor;
  }
  std::sort(source_names_.begin(), source_names_.end());
  constexpr std::string_view kUp = "decoder.up_blocks.";
  for (const std::string& name : source_names_) {
    if (!name.starts_with(kUp)) continue;
    const std::string index = name.substr(kUp.size(), name.find('.', kUp.size()) - kUp.size());
    if (index.size() <= 3 && index.find_first_not_of("0123456789") == std::string::npos && !index.empty()) {
      vae_levels_ = std::max<std::int64_t>(vae_levels_, std::stoll(index) + 1);
    }
  }
  return true;
}

void Checkpoint::refuse_relatives() const {
  struct Relative {
    Model kind;
    std::string_view start;
    std::string_view what;
  };
  static constexpr Relative kRelatives[] = {
      {Model::kTransformer, "distilled_guidance_layer.", "a Chroma transformer"},
      {Model::kTransformer, "single_stream_modulation.", "a FLUX.2 transformer"},
      {Model::kTransformer, "double_stream_modulation", "a FLUX.2 transformer"},
      {Model::kTransformer, "joint_blocks.", "a Stable Diffusion 3 transformer"},
      {Model::kVae, "quant_conv.", "an autoencoder of Stable Diffusion (quant_conv)"},
      {Model::kVae, "post_quant_conv.", "an autoencoder of Stable Diffusion (post_quant_conv)"},
      {Model::kT5, "encoder.block.0.layer.1.DenseReluDense.wi.weight", "a T5 v1.0 encoder (no gate in its MLP)"},
  };
  for (const Relative& relative : kRelatives) {
    if (relative.kind != kind_) continue;
    for (const std::string& name : source_names_) {
      if (!name.starts_with(relative.start)) continue;
      throw FormatError({fmt::format("{}: tensor '{}'", path_, name), std::string(relative.what),
                         kind_ == Model::kT5 ? "the encoder of T5 v1.1" : "the " + name_of(kind_) + " of FLUX.1", ""});
    }
  }
}

void Checkpoint::read_config() {
  const SafetensorsFile& first = *files_.front();
  const auto& metadata = first.metadata();
  if (const auto found = metadata.find("config"); found != metadata.end()) {
    config_ = parse_config(found->second, first.path() + ": __metadata__ 'config'");
    return;
  }
  if (kind_ == Model::kVae && metadata.contains("ch_mult")) {
    std::string text;
    for (const char* key : {"ch", "ch_mult", "num_res_blocks"}) {
      if (const auto found = metadata.find(key); found != metadata.end()) {
        text += fmt::format("{}\"{}\":{}", text.empty() ? "{" : ",", key, found->second);
      }
    }
    config_ = parse_config(text + "}", first.path() + ": __metadata__");
    return;
  }
  const fs::path beside = fs::path(path_).parent_path() / "config.json";
  std::error_code error;
  if (fs::exists(beside, error)) config_ = parse_config(read_text(beside.string()), beside.string());
}

std::vector<std::string> Checkpoint::files() const {
  std::vector<std::string> paths;
  for (const auto& file : files_) paths.push_back(file->path());
  return paths;
}

std::vector<std::string> Checkpoint::names_in_file(const std::string& name) const {
  constexpr std::string_view kClipPrefix = "text_model.";
  if (kind_ == Model::kClip && name.starts_with(kClipPrefix)) return {name.substr(kClipPrefix.size())};
  if (naming_ == Naming::kCanonical) return {name};
  if (kind_ == Model::kTransformer) return diffusers_tensors(name);
  const std::string translated = diffusers_vae_tensor(name, vae_levels_);
  return translated.empty() ? std::vector<std::string>() : std::vector{translated};
}

std::optional<std::vector<Checkpoint::Piece>> Checkpoint::find(const std::string& name) const {
  std::vector<Piece> found;
  std::int64_t row = 0;
  for (const std::string& usual : names_in_file(name)) {
    const std::vector<std::string> names = spellings(usual);
    const auto spelled =
        std::find_if(names.begin(), names.end(), [&](const std::string& n) { return tensors_.contains(n); });
    if (spelled == names.end()) return std::nullopt;
    const StoredTensor& stored = tensors_.at(*spelled);
    const std::int64_t rows = rows_of(stored.info->shape);
    if (naming_ == Naming::kDiffusers && name.starts_with(kSwappedModule)) {
      const std::int64_t half = rows / 2;
      found.push_back({stored, *spelled, half, 0, rows - half});
      found.push_back({stored, *spelled, 0, rows - half, half});
    } else {
      found.push_back({stored, *spelled, 0, row, rows});
    }
    row += rows;
  }
  if (found.empty()) return std::nullopt;
  return found;
}

std::vector<Checkpoint::Piece> Checkpoint::pieces(const std::string& name) const {
  if (std::optional<std::vector<Piece>> found = find(name)) return std::move(*found);
  std::string expected = "a tensor of that name";
  const std::vector<std::string> names = names_in_file(name);
  if (naming_ == Naming::kDiffusers && !names.empty()) {
    expected =
        fmt::format("{} '{}'", names.size() == 1 ? "the tensor" : "all of the tensors", fmt::join(names, "', '"));
  }
  throw FormatError({fmt::format("{}: tensor '{}{}'", path_, naming_ == Naming::kCanonical ? prefix_ : "",
                                 naming_ == Naming::kCanonical ? names.at(0) : name),
                     "no such tensor", expected, ""});
}

DType Checkpoint::dtype_of(const Piece& piece) const {
  const TensorInfo& info = *piece.stored.info;
  piece.stored.file->data(info);  // throws if the dtype is unknown
  constexpr std::string_view kWeight = ".weight";
  if (piece.source_name.ends_with(kWeight)) {
    const auto mark = marked_.find(piece.source_name.substr(0, piece.source_name.size() - kWeight.size()));
    if (mark != marked_.end() && (info.dtype == DType::U8 || info.dtype == mark->second)) return mark->second;
  }
  if (is_floating(info.dtype)) return info.dtype;
  throw FormatError({where(piece.stored), fmt::format("dtype {}", name_of(info.dtype)),
                     "F32, F16, BF16, F8_E4M3, F8_E5M2 or F64", "quantised files of other kinds are not supported"});
}

bool Checkpoint::has(const std::string& name) const { return find(name).has_value(); }

std::vector<std::int64_t> Checkpoint::shape(const std::string& name) const {
  const std::vector<Piece> parts = pieces(name);
  std::vector<std::int64_t> shape = parts[0].stored.info->shape;
  std::int64_t rows = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Piece& part = parts[i];
    const std::vector<std::int64_t>& other = part.stored.info->shape;
    if (other.size() != shape.size() || columns_of(other) != columns_of(shape)) {
      throw FormatError({where(part.stored), "shape " + shape_text(other),
                         fmt::format("rows of the width of '{}', {}", parts[0].source_name, shape_text(shape)), ""});
    }
    if (parts.size() >= 3 && i < 3 && part.rows != parts[0].rows) {
      throw FormatError({where(part.stored), "shape " + shape_text(other),
                         fmt::format("as many rows as '{}', {}", parts[0].source_name, parts[0].rows), ""});
    }
    rows += part.rows;
  }
  if (!shape.empty()) shape[0] = rows;
  // The attention of the autoencoder is stored as 1x1 convolutions or as plain matrices.
  const bool matrix = shape.size() == 2 && name.ends_with(".weight") && name.find(".attn_1.") != std::string::npos;
  if (kind_ == Model::kVae && matrix) shape.insert(shape.end(), {1, 1});
  return shape;
}

DType Checkpoint::source_dtype(const std::string& name) const { return dtype_of(pieces(name)[0]); }

void Checkpoint::read_piece(const Piece& piece, std::int64_t first, std::int64_t rows, float* out) const {
  const TensorInfo& info = *piece.stored.info;
  const DType dtype = dtype_of(piece);
  const std::int64_t columns = columns_of(info.shape);
  const std::int64_t begin = piece.source_row + first;
  const std::span<const std::byte> data = piece.stored.file->data(info);
  const std::size_t offset = static_cast<std::size_t>(begin * columns) * size_of(dtype);
  to_f32(data.data() + offset, dtype, out, rows * columns);
  piece.stored.file->check_whole();
  const std::vector<float> scales = row_scales(tensors_, piece.source_name, rows_of(info.shape));
  for (std::int64_t r = 0; r < rows; ++r) {
    float* row = out + r * columns;
    if (!scales.empty()) {
      const float scale = scales[static_cast<std::size_t>(begin + r)];
      for (std::int64_t c = 0; c < columns; ++c) row[c] *= scale;
    }
    if (!std::all_of(row, row + columns, [](float value) { return std::isfinite(value); })) {
      check_finite({row, static_cast<std::size_t>(columns)}, fmt::format("{}, row {}", where(piece.stored), begin + r));
    }
  }
}

void Checkpoint::read_f32(const std::string& name, std::int64_t row_begin, std::int64_t rows, float* out) const {
  const std::vector<std::int64_t> whole = shape(name);
  const std::int64_t columns = columns_of(whole);
  if (row_begin < 0 || rows < 0 || rows > rows_of(whole) - row_begin) {
    throw std::logic_error("Checkpoint::read_f32: rows out of range of " + name);
  }
  for (const Piece& piece : pieces(name)) {
    const std::int64_t begin = std::max(row_begin, piece.row);
    const std::int64_t end = std::min(row_begin + rows, piece.row + piece.rows);
    if (begin < end) read_piece(piece, begin - piece.row, end - begin, out + (begin - row_begin) * columns);
  }
}

std::vector<float> Checkpoint::read_f32(const std::string& name) const {
  const std::vector<std::int64_t> whole = shape(name);
  std::vector<float> values(static_cast<std::size_t>(rows_of(whole) * columns_of(whole)));
  read_f32(name, 0, rows_of(whole), values.data());
  return values;
}

void Checkpoint::check(const std::vector<NamedShape>& expected) const {
  for (const NamedShape& tensor : expected) {
    const std::vector<std::int64_t> found = shape(tensor.name);
    const std::vector<Piece> parts = pieces(tensor.name);
    if (found != tensor.shape) {
      std::string place = where(parts[0].stored);
      if (parts[0].source_name != tensor.name) place += fmt::format(", read as '{}'", tensor.name);
      throw FormatError({place, "shape " + shape_text(found), shape_text(tensor.shape), ""});
    }
    for (const Piece& part : parts) {
      dtype_of(part);
      row_scales(tensors_, part.source_name, rows_of(part.stored.info->shape));
    }
  }
}

}  // namespace squareq
