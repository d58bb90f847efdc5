#include "io/tensor_names.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

namespace squareq {
namespace {

struct Pair {
  std::string_view bfl;
  std::vector<std::string_view> diffusers;
};

const std::vector<Pair>& outer_modules() {
  static const std::vector<Pair> kPairs{
      {"img_in", {"x_embedder"}},
      {"txt_in", {"context_embedder"}},
      {"time_in.in_layer", {"time_text_embed.timestep_embedder.linear_1"}},
      {"time_in.out_layer", {"time_text_embed.timestep_embedder.linear_2"}},
      {"guidance_in.in_layer", {"time_text_embed.guidance_embedder.linear_1"}},
      {"guidance_in.out_layer", {"time_text_embed.guidance_embedder.linear_2"}},
      {"vector_in.in_layer", {"time_text_embed.text_embedder.linear_1"}},
      {"vector_in.out_layer", {"time_text_embed.text_embedder.linear_2"}},
      {"final_layer.linear", {"proj_out"}},
      {kSwappedModule, {"norm_out.linear"}},
  };
  return kPairs;
}

const std::vector<Pair>& double_modules() {
  static const std::vector<Pair> kPairs{
      {"img_mod.lin", {"norm1.linear"}},
      {"txt_mod.lin", {"norm1_context.linear"}},
      {"img_attn.qkv", {"attn.to_q", "attn.to_k", "attn.to_v"}},
      {"txt_attn.qkv", {"attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"}},
      {"img_attn.norm.query_norm", {"attn.norm_q"}},
      {"img_attn.norm.key_norm", {"attn.norm_k"}},
      {"txt_attn.norm.query_norm", {"attn.norm_added_q"}},
      {"txt_attn.norm.key_norm", {"attn.norm_added_k"}},
      {"img_attn.proj", {"attn.to_out.0"}},
      {"txt_attn.proj", {"attn.to_add_out"}},
      {"img_mlp.0", {"ff.net.0.proj"}},
      {"img_mlp.2", {"ff.net.2"}},
      {"txt_mlp.0", {"ff_context.net.0.proj"}},
      {"txt_mlp.2", {"ff_context.net.2"}},
  };
  return kPairs;
}

const std::vector<Pair>& single_modules() {
  static const std::vector<Pair> kPairs{
      {"modulation.lin", {"norm.linear"}}, {"linear1", {"attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"}},
      {"linear2", {"proj_out"}},           {"norm.query_norm", {"attn.norm_q"}},
      {"norm.key_norm", {"attn.norm_k"}},
  };
  return kPairs;
}

bool is_number(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// "double_blocks.3.img_mlp.0" with prefix "double_blocks." gives ("3", "img_mlp.0").
std::optional<std::pair<std::string_view, std::string_view>> split_block(std::string_view name,
                                                                         std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  const std::size_t dot = name.find('.');
  if (dot == std::string_view::npos || !is_number(name.substr(0, dot))) return std::nullopt;
  return std::pair(name.substr(0, dot), name.substr(dot + 1));
}

std::vector<std::string> look_up(const std::vector<Pair>& pairs, std::string_view module, const std::string& prefix) {
  for (const Pair& pair : pairs) {
    if (pair.bfl != module) continue;
    std::vector<std::string> names;
    for (const std::string_view name : pair.diffusers) names.push_back(prefix + std::string(name));
    return names;
  }
  return {};
}

// "a.b.weight" gives ("a.b", "weight").
std::pair<std::string, std::string> split_last(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return {std::string(name), ""};
  return {std::string(name.substr(0, dot)), std::string(name.substr(dot + 1))};
}

bool replace_first(std::string& text, std::string_view from, std::string_view to) {
  const std::size_t at = text.find(from);
  if (at == std::string::npos) return false;
  text.replace(at, from.size(), to);
  return true;
}

}  // namespace

std::vector<std::string> diffusers_modules(std::string_view bfl_module) {
  if (const auto block = split_block(bfl_module, "double_blocks.")) {
    return look_up(double_modules(), block->second, fmt::format("transformer_blocks.{}.", block->first));
  }
  if (const auto block = split_block(bfl_module, "single_blocks.")) {
    return look_up(single_modules(), block->second, fmt::format("single_transformer_blocks.{}.", block->first));
  }
  return look_up(outer_modules(), bfl_module, "");
}

std::vector<std::string> diffusers_tensors(std::string_view bfl_tensor) {
  const auto [module, kind] = split_last(bfl_tensor);
  std::vector<std::string> names = diffusers_modules(module);
  for (std::string& name : names) name += kind == "scale" ? ".weight" : "." + kind;
  return names;
}

std::string diffusers_vae_tensor(std::string_view bfl_tensor, std::int64_t levels) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 10> kParts{{
      {".mid.attn_1.norm.", ".mid_block.attentions.0.group_norm."},
      {".mid.attn_1.q.", ".mid_block.attentions.0.to_q."},
      {".mid.attn_1.k.", ".mid_block.attentions.0.to_k."},
      {".mid.attn_1.v.", ".mid_block.attentions.0.to_v."},
      {".mid.attn_1.proj_out.", ".mid_block.attentions.0.to_out.0."},
      {".mid.block_1.", ".mid_block.resnets.0."},
      {".mid.block_2.", ".mid_block.resnets.1."},
      {"coder.norm_out.", "coder.conv_norm_out."},
      {"coder.conv_in.", "coder.conv_in."},
      {"coder.conv_out.", "coder.conv_out."},
  }};
  std::string name(bfl_tensor);
  for (const auto& [bfl, diffusers] : kParts) {
    if (replace_first(name, bfl, diffusers)) return name;
  }
  const bool up = bfl_tensor.starts_with("decoder.");
  const auto level = split_block(bfl_tensor, up ? "decoder.up." : "encoder.down.");
  if (!level) return "";
  std::int64_t index = std::stoll(std::string(level->first.substr(0, 9)));
  if (up) index = levels - 1 - index;  // decoder levels count in the order of execution
  std::string rest(level->second);
  replace_first(rest, "nin_shortcut.", "conv_shortcut.");
  if (!replace_first(rest, "block.", "resnets.") && !replace_first(rest, "downsample.conv.", "downsamplers.0.conv.") &&
      !replace_first(rest, "upsample.conv.", "upsamplers.0.conv.")) {
    return "";
  }
  return fmt::format("{}.{}.{}", up ? "decoder.up_blocks" : "encoder.down_blocks", index, rest);
}

std::vector<std::string> spellings(const std::string& name) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 6> kOther{{
      {"query_norm.scale", "query_norm.weight"},
      {"key_norm.scale", "key_norm.weight"},
      {"attentions.0.to_q.", "attentions.0.query."},
      {"attentions.0.to_k.", "attentions.0.key."},
      {"attentions.0.to_v.", "attentions.0.value."},
      {"attentions.0.to_out.0.", "attentions.0.proj_attn."},
  }};
  std::vector<std::string> names{name};
  if (name == "shared.weight") names.emplace_back("encoder.embed_tokens.weight");
  for (const auto& [usual, other] : kOther) {
    std::string changed = name;
    if (replace_first(changed, usual, other)) names.push_back(changed);
  }
  return names;
}

std::vector<ModulePart> module_parts(const std::string& bfl_module, std::int64_t out, const FluxShape& shape) {
  const std::vector<std::string> names = diffusers_modules(bfl_module);
  std::vector<ModulePart> parts;
  std::int64_t row = 0;
  for (const std::string& name : names) {
    const std::int64_t rows = names.size() == 1 ? out : name.ends_with("proj_mlp") ? shape.mlp_hidden : shape.hidden;
    parts.push_back({name, row, rows});
    row += rows;
  }
  return parts;
}

std::vector<DiffusersTensor> names_in_diffusers(const NamedShape& canonical, const FluxShape& shape) {
  const auto [module, kind] = split_last(canonical.name);
  const std::int64_t out = canonical.shape.at(0);
  std::vector<DiffusersTensor> tensors;
  for (const ModulePart& part : module_parts(module, out, shape)) {
    DiffusersTensor tensor{part.module + (kind == "scale" ? ".weight" : "." + kind), canonical.shape, {}};
    tensor.shape[0] = part.rows;
    tensor.rows = {{part.row_begin, part.rows}};
    if (module == kSwappedModule) tensor.rows = {{out / 2, out / 2}, {0, out / 2}};
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

std::vector<LinearSize> flux_linears(const FluxShape& shape) {
  std::vector<LinearSize> linears;
  for (const NamedShape& tensor : flux_tensors(shape)) {
    const auto [module, kind] = split_last(tensor.name);
    if (kind == "weight") linears.push_back({module, tensor.shape.at(0), tensor.shape.at(1)});
  }
  return linears;
}

}  // namespace squareq
