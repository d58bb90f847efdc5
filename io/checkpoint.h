// Published model files of the FLUX.1 family under one set of names, whatever their layout: BFL names for transformer
// and autoencoder, Hugging Face names for CLIP (prefix "text_model.") and T5 (prefix "encoder.", and "shared.weight").
// Projections that a file splits are joined on the way, and FP8 scales are applied, one range of rows at a time.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "io/stored_tensors.h"
#include "io/tensor_names.h"
#include "kernels/base/dtype.h"
#include "kernels/base/shapes.h"

namespace squareq {

enum class Model : std::uint8_t { kTransformer, kT5, kClip, kVae };

std::string name_of(Model kind);  // "transformer", "T5 encoder", ...

// Throws FormatError naming `place` ("file: tensor 'name'") and index if a value is NaN or infinite.
void check_finite(std::span<const float> values, const std::string& place);

// Reading is const and safe from several threads.
class Checkpoint {
 public:
  // `path`: a .safetensors or .sft file, a *.safetensors.index.json, a folder that holds either, or the root folder of
  // a diffusers model (or one with flux1-*, ae, clip_l and t5xxl files), of which the part `kind` is taken.
  // Throws FileError and FormatError; formats that are known but not supported are refused by name.
  static Checkpoint open(const std::string& path, Model kind);

  // Whether `path` has the part at all; for programs that take any of the four. Errors inside the files still throw.
  static bool holds(const std::string& path, Model kind);

  Model kind() const { return kind_; }
  const std::string& path() const { return path_; }  // the file, index or folder that was found
  std::vector<std::string> files() const;            // the files that hold tensors

  bool has(const std::string& name) const;
  std::vector<std::int64_t> shape(const std::string& name) const;  // throws FormatError if it is missing
  DType source_dtype(const std::string& name) const;               // of its first part

  // Rows [row_begin, row_begin + rows) of a tensor seen as [first axis, all others], finite values only.
  void read_f32(const std::string& name, std::int64_t row_begin, std::int64_t rows, float* out) const;
  std::vector<float> read_f32(const std::string& name) const;

  // Throws FormatError naming file, tensor, found and expected for the first tensor that is missing, of another shape,
  // or of a dtype that weights are not read from.
  void check(const std::vector<NamedShape>& expected) const;

  // Names in the file's own naming, without the prefix that the part has in it, sorted.
  const std::vector<std::string>& source_names() const { return source_names_; }

  // The part's settings: header metadata "config" (or the autoencoder's keys ch, ch_mult, num_res_blocks), else the
  // config.json beside the file; null if there is neither.
  const nlohmann::json& config() const { return config_; }

 private:
  // Consecutive rows of one tensor in the files that are consecutive rows of a tensor under a canonical name.
  struct Piece {
    StoredTensor stored;
    std::string source_name;
    std::int64_t source_row = 0;
    std::int64_t row = 0;
    std::int64_t rows = 0;
  };

  Checkpoint() = default;
  static std::optional<Checkpoint> try_open(const std::string& path, Model kind);
  StoredTensors read_files(const std::map<std::string, std::string>& shards);
  bool take_part(const StoredTensors& all);
  void refuse_relatives() const;
  void read_config();
  std::vector<std::string> names_in_file(const std::string& name) const;
  std::optional<std::vector<Piece>> find(const std::string& name) const;
  std::vector<Piece> pieces(const std::string& name) const;
  DType dtype_of(const Piece& piece) const;
  void read_piece(const Piece& piece, std::int64_t first, std::int64_t rows, float* out) const;

  Model kind_ = Model::kTransformer;
  std::string path_;
  std::string prefix_;
  Naming naming_ = Naming::kCanonical;
  std::int64_t vae_levels_ = 0;
  std::vector<std::shared_ptr<const SafetensorsFile>> files_;
  StoredTensors tensors_;
  std::vector<std::string> source_names_;
  std::map<std::string, DType> marked_;  // what the weights of marked layers hold
  nlohmann::json config_;
};

// Sizes of a network, from its tensors and, where those do not tell, from config(). Every tensor that the network needs
// is checked for presence, shape and a dtype that can be read: FormatError names file, tensor, found and expected.
// What config() or `config_override` says must agree with the tensors. Recognised keys: those of the original code and
// of golden files (hidden, heads, depth, single, ctx, vec, inch, guidance, axes), and those of diffusers.

// RoPE axes come from `config_override`, else from config() ("axes", "axes_dim" or "axes_dims_rope"), else are 16/56/56
// for a head dim of 128. Throws ConfigError otherwise.
FluxShape flux_shape(const Checkpoint& checkpoint, const std::optional<nlohmann::json>& config_override = std::nullopt);

T5Shape t5_shape(const Checkpoint& checkpoint);

// Heads come from config(); without it they are of 64 features if the width is 768, else it is a ConfigError.
ClipShape clip_shape(const Checkpoint& checkpoint);

// Scale and shift come from config(); without it they are those of FLUX.1.
VaeShape vae_shape(const Checkpoint& checkpoint);

}  // namespace squareq
