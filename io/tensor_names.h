// The tensors of each network, and how the names of the two published families relate. The only place that knows.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/shapes.h"

namespace squareq {

struct NamedShape {
  std::string name;
  std::vector<std::int64_t> shape;
};

// Every tensor of a network under canonical names, in execution order.
std::vector<NamedShape> flux_tensors(const FluxShape& shape);
std::vector<NamedShape> t5_tensors(const T5Shape& shape);
std::vector<NamedShape> clip_tensors(const ClipShape& shape);
std::vector<NamedShape> vae_tensors(const VaeShape& shape);

enum class Naming : std::uint8_t { kCanonical, kDiffusers };

// The final modulation holds (shift, scale) in BFL files and (scale, shift) in diffusers files.
inline constexpr std::string_view kSwappedModule = "final_layer.adaLN_modulation.1";

// The diffusers modules that make up a module of the transformer, joined along output rows in this order; empty if the
// name is not one of a FLUX transformer. "double_blocks.3.img_attn.qkv" gives "transformer_blocks.3.attn.to_q" and so
// on; norms are modules too ("double_blocks.3.img_attn.norm.query_norm").
std::vector<std::string> diffusers_modules(std::string_view bfl_module);

// The diffusers tensors of a canonical transformer tensor, in the same order; empty if unknown.
std::vector<std::string> diffusers_tensors(std::string_view bfl_tensor);

// The diffusers name of a canonical autoencoder tensor, with `levels` resolutions; empty if unknown.
std::string diffusers_vae_tensor(std::string_view bfl_tensor, std::int64_t levels);

// Other spellings of a tensor name that files in use have: ".scale" or ".weight" for query and key norms, both names of
// T5's embedding, the attention of older diffusers autoencoders. The name itself comes first.
std::vector<std::string> spellings(const std::string& name);

struct RowSpan {
  std::int64_t begin = 0;
  std::int64_t rows = 0;
};

// One diffusers module within a module of the transformer.
struct ModulePart {
  std::string module;
  std::int64_t row_begin = 0;
  std::int64_t rows = 0;
};
std::vector<ModulePart> module_parts(const std::string& bfl_module, std::int64_t out, const FluxShape& shape);

// A tensor of a diffusers transformer file and the canonical rows that it holds, in its order.
struct DiffusersTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<RowSpan> rows;
};
std::vector<DiffusersTensor> names_in_diffusers(const NamedShape& canonical, const FluxShape& shape);

// A frozen linear layer of the transformer.
struct LinearSize {
  std::string name;  // without ".weight"
  std::int64_t out = 0;
  std::int64_t in = 0;
};
std::vector<LinearSize> flux_linears(const FluxShape& shape);

}  // namespace squareq
