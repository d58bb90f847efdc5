// Sizes of the networks from their files.
#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <string_view>

#include "io/checkpoint.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

using Json = nlohmann::json;

// Settings that come with a model or from a person, with the place to name in messages.
struct Settings {
  const Json* json;
  std::string place;

  const Json* find(std::string_view key) const {
    if (!json->is_object()) return nullptr;
    const auto found = json->find(std::string(key));
    return found == json->end() || found->is_null() ? nullptr : &*found;
  }
  const Json* find(std::initializer_list<std::string_view> keys, std::string_view* which) const {
    for (const std::string_view key : keys) {
      if (const Json* value = find(key)) {
        *which = key;
        return value;
      }
    }
    return nullptr;
  }
  [[noreturn]] void fail(std::string_view key, const std::string& expected) const {
    throw ConfigError({fmt::format("{}: '{}'", place, key),
                       find(key)->dump(-1, ' ', false, Json::error_handler_t::replace), expected, ""});
  }
  std::optional<double> number(std::string_view key, bool positive = true) const {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number() || (positive && !(value->get<double>() > 0))) {
      fail(key, positive ? "a positive number" : "a number");
    }
    return value->get<double>();
  }
  std::optional<std::int64_t> integer(std::string_view key) const {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number_integer() || value->get<double>() < 0 || value->get<double>() > 1e15) {
      fail(key, "a whole number that is not negative");
    }
    return value->get<std::int64_t>();
  }
  void agree(std::initializer_list<std::string_view> keys, std::int64_t tensors_say) const {
    std::string_view key;
    if (find(keys, &key) == nullptr) return;
    if (integer(key) != tensors_say) fail(key, fmt::format("{}, as the tensors say", tensors_say));
  }
  void agree(std::initializer_list<std::string_view> keys, bool tensors_say) const {
    std::string_view key;
    const Json* value = find(keys, &key);
    if (value == nullptr) return;
    if (!value->is_boolean() || value->get<bool>() != tensors_say) {
      fail(key, fmt::format("{}, as the tensors say", tensors_say));
    }
  }
};

Settings settings_of(const Checkpoint& checkpoint) { return {&checkpoint.config(), checkpoint.path() + ": config"}; }

std::int64_t side(const Checkpoint& checkpoint, const std::string& name, std::size_t axis, std::size_t rank) {
  const std::vector<std::int64_t> shape = checkpoint.shape(name);
  const bool right = shape.size() == rank && std::all_of(shape.begin(), shape.end(), [](auto s) { return s > 0; });
  if (!right) {
    throw FormatError({fmt::format("{}: tensor '{}'", checkpoint.path(), name), "shape " + shape_text(shape),
                       fmt::format("{} positive {}", rank, rank == 1 ? "side" : "sides"), ""});
  }
  return shape[axis];
}

// 1 + the largest i of names that start with `prefix` and i. More than there are tensors cannot be complete.
std::int64_t count_indices(const Checkpoint& checkpoint, std::string_view prefix) {
  std::int64_t count = 0;
  for (const std::string& name : checkpoint.source_names()) {
    if (!name.starts_with(prefix)) continue;
    const std::string digits = name.substr(prefix.size(), name.find('.', prefix.size()) - prefix.size());
    if (digits.empty() || digits.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::int64_t index = digits.size() > 9 ? 1'000'000'000 : std::stoll(digits);
    if (index >= static_cast<std::int64_t>(checkpoint.source_names().size())) {
      throw FormatError({fmt::format("{}: tensor '{}'", checkpoint.path(), name), "index " + digits,
                         "indices that count from 0 without gaps", "tensors are missing"});
    }
    count = std::max(count, index + 1);
  }
  return count;
}

std::int64_t count_blocks(const Checkpoint& checkpoint, std::string_view bfl, std::string_view diffusers) {
  return std::max(count_indices(checkpoint, bfl), count_indices(checkpoint, diffusers));
}

bool read_axes(const Settings& settings, FluxShape& shape) {
  std::string_view key;
  const Json* axes = settings.find({"axes_dims_rope", "axes_dim", "axes"}, &key);
  if (axes == nullptr) return false;
  const std::string expected = fmt::format("three even numbers that sum to the head dim {}", shape.head_dim);
  if (!axes->is_array() || axes->size() != shape.axes.size()) settings.fail(key, expected);
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < shape.axes.size(); ++i) {
    const Json& axis = (*axes)[i];
    const bool right = axis.is_number_integer() && axis.get<double>() >= 0 &&
                       axis.get<double>() <= static_cast<double>(shape.head_dim) && axis.get<std::int64_t>() % 2 == 0;
    if (!right) settings.fail(key, expected);
    shape.axes[i] = axis.get<std::int64_t>();
    sum += shape.axes[i];
  }
  if (sum != shape.head_dim) settings.fail(key, expected);
  return true;
}

void agree(const Settings& settings, FluxShape& shape) {
  settings.agree({"hidden_size", "hidden"}, shape.hidden);
  settings.agree({"num_attention_heads", "num_heads", "heads"}, shape.heads);
  settings.agree({"attention_head_dim", "head_dim"}, shape.head_dim);
  settings.agree({"num_layers", "depth"}, shape.double_blocks);
  settings.agree({"num_single_layers", "depth_single_blocks", "single"}, shape.single_blocks);
  settings.agree({"joint_attention_dim", "context_in_dim", "ctx"}, shape.context_in);
  settings.agree({"pooled_projection_dim", "vec_in_dim", "vec"}, shape.vector_in);
  settings.agree({"in_channels", "inch"}, shape.in_channels);
  settings.agree({"out_channels"}, shape.out_channels);
  settings.agree({"guidance_embeds", "guidance_embed", "guidance"}, shape.guidance);
  if (const std::optional<double> theta = settings.number("theta")) shape.theta = *theta;
}

}  // namespace

FluxShape flux_shape(const Checkpoint& checkpoint, const std::optional<Json>& config_override) {
  FluxShape s;
  s.hidden = side(checkpoint, "img_in.weight", 0, 2);
  s.in_channels = side(checkpoint, "img_in.weight", 1, 2);
  s.context_in = side(checkpoint, "txt_in.weight", 1, 2);
  s.vector_in = side(checkpoint, "vector_in.in_layer.weight", 1, 2);
  s.out_channels = side(checkpoint, "final_layer.linear.weight", 0, 2);
  s.guidance = checkpoint.has("guidance_in.in_layer.weight");
  s.double_blocks = count_blocks(checkpoint, "double_blocks.", "transformer_blocks.");
  s.single_blocks = count_blocks(checkpoint, "single_blocks.", "single_transformer_blocks.");
  if (s.double_blocks == 0 && s.single_blocks == 0) {
    throw FormatError({checkpoint.path(), "no blocks", "the transformer of FLUX.1", ""});
  }
  const bool doubles = s.double_blocks > 0;
  s.head_dim =
      side(checkpoint,
           doubles ? "double_blocks.0.img_attn.norm.query_norm.scale" : "single_blocks.0.norm.query_norm.scale", 0, 1);
  s.mlp_hidden = doubles ? side(checkpoint, "double_blocks.0.img_mlp.0.weight", 0, 2)
                         : side(checkpoint, "single_blocks.0.linear2.weight", 1, 2) - s.hidden;
  if (s.hidden % s.head_dim != 0 || s.head_dim % 2 != 0 || s.mlp_hidden <= 0) {
    throw FormatError({checkpoint.path(), fmt::format("width {} with heads of {}", s.hidden, s.head_dim),
                       "an even head dim that divides the width", ""});
  }
  s.heads = s.hidden / s.head_dim;
  const Settings own = settings_of(checkpoint);
  agree(own, s);
  bool have_axes = read_axes(own, s);
  if (config_override) {
    const Settings given{&*config_override, "given config"};
    agree(given, s);
    have_axes = read_axes(given, s) || have_axes;
  }
  if (!have_axes && s.head_dim == 128) {
    s.axes = {16, 56, 56};
    have_axes = true;
  }
  if (!have_axes) {
    throw ConfigError({checkpoint.path() + ": RoPE axes", fmt::format("none for a head dim of {}", s.head_dim),
                       "\"axes_dims_rope\": [a, b, c] in the model's config.json", "or give them with --config"});
  }
  checkpoint.check(flux_tensors(s));
  return s;
}

T5Shape t5_shape(const Checkpoint& checkpoint) {
  const std::string first = "encoder.block.0.layer.";
  const std::string bias = first + "0.SelfAttention.relative_attention_bias.weight";
  T5Shape s;
  s.vocab = side(checkpoint, "shared.weight", 0, 2);
  s.width = side(checkpoint, "shared.weight", 1, 2);
  s.layers = count_indices(checkpoint, "encoder.block.");
  s.buckets = side(checkpoint, bias, 0, 2);
  s.heads = side(checkpoint, bias, 1, 2);
  const std::int64_t inner = side(checkpoint, first + "0.SelfAttention.q.weight", 0, 2);
  if (inner % s.heads != 0 || s.buckets % 4 != 0) {
    throw FormatError({fmt::format("{}: tensor '{}'", checkpoint.path(), bias),
                       "shape " + shape_text({s.buckets, s.heads}),
                       fmt::format("[a multiple of 4, a divisor of the attention width {}]", inner), ""});
  }
  s.head_dim = inner / s.heads;
  s.mlp_hidden = side(checkpoint, first + "1.DenseReluDense.wi_0.weight", 0, 2);
  const Settings settings = settings_of(checkpoint);
  settings.agree({"vocab_size"}, s.vocab);
  settings.agree({"d_model"}, s.width);
  settings.agree({"num_layers"}, s.layers);
  settings.agree({"num_heads"}, s.heads);
  settings.agree({"d_kv"}, s.head_dim);
  settings.agree({"d_ff"}, s.mlp_hidden);
  settings.agree({"relative_attention_num_buckets"}, s.buckets);
  s.max_distance = settings.integer("relative_attention_max_distance").value_or(s.max_distance);
  s.epsilon = settings.number("layer_norm_epsilon").value_or(s.epsilon);
  if (s.max_distance <= s.buckets / 4) {
    throw ConfigError({checkpoint.path() + ": relative_attention_max_distance", fmt::format("{}", s.max_distance),
                       fmt::format("more than a quarter of the {} buckets", s.buckets), ""});
  }
  if (const Json* form = settings.find("feed_forward_proj"); form != nullptr && *form != "gated-gelu") {
    settings.fail("feed_forward_proj", "gated-gelu");
  }
  checkpoint.check(t5_tensors(s));
  return s;
}

ClipShape clip_shape(const Checkpoint& checkpoint) {
  const std::string prefix = "text_model.embeddings.";
  ClipShape s;
  s.vocab = side(checkpoint, prefix + "token_embedding.weight", 0, 2);
  s.width = side(checkpoint, prefix + "token_embedding.weight", 1, 2);
  s.positions = side(checkpoint, prefix + "position_embedding.weight", 0, 2);
  s.layers = count_indices(checkpoint, "encoder.layers.");
  s.mlp_hidden = side(checkpoint, "text_model.encoder.layers.0.mlp.fc1.weight", 0, 2);
  Settings settings = settings_of(checkpoint);
  if (const Json* text = settings.find("text_config")) settings.json = text;  // of a complete CLIP
  settings.agree({"vocab_size"}, s.vocab);
  settings.agree({"hidden_size"}, s.width);
  settings.agree({"num_hidden_layers"}, s.layers);
  settings.agree({"intermediate_size"}, s.mlp_hidden);
  settings.agree({"max_position_embeddings"}, s.positions);
  if (const Json* form = settings.find("hidden_act"); form != nullptr && *form != "quick_gelu") {
    settings.fail("hidden_act", "quick_gelu");
  }
  s.epsilon = settings.number("layer_norm_eps").value_or(s.epsilon);
  if (const std::optional<std::int64_t> heads = settings.integer("num_attention_heads")) {
    if (*heads == 0 || s.width % *heads != 0) {
      settings.fail("num_attention_heads", fmt::format("a divisor of the width {}", s.width));
    }
    s.heads = *heads;
  } else if (s.width == 768) {
    s.heads = 12;
  } else {
    throw ConfigError({checkpoint.path() + ": number of heads", fmt::format("none for a width of {}", s.width),
                       "\"num_attention_heads\" in the model's config.json", ""});
  }
  // Published configs say 2, which is not the id of any end token; transformers then takes the largest id.
  const std::int64_t eos = settings.integer("eos_token_id").value_or(2);
  s.eos = eos == 2 ? -1 : eos;
  checkpoint.check(clip_tensors(s));
  return s;
}

VaeShape vae_shape(const Checkpoint& checkpoint) {
  VaeShape s;
  s.width = side(checkpoint, "encoder.conv_in.weight", 0, 4);
  s.latent_channels = side(checkpoint, "decoder.conv_in.weight", 1, 4);
  const std::int64_t levels = count_blocks(checkpoint, "encoder.down.", "encoder.down_blocks.");
  s.resnets = count_blocks(checkpoint, "encoder.down.0.block.", "encoder.down_blocks.0.resnets.");
  if (levels == 0 || levels > 16) {
    throw FormatError({checkpoint.path(), fmt::format("{} resolutions", levels), "an autoencoder with 1 to 16", ""});
  }
  for (std::int64_t l = 0; l < levels; ++l) {
    const std::string name = fmt::format("encoder.down.{}.block.0.conv1.weight", l);
    const std::int64_t channels = side(checkpoint, name, 0, 4);
    if (channels % s.width != 0) {
      throw FormatError({fmt::format("{}: tensor '{}'", checkpoint.path(), name), fmt::format("{} channels", channels),
                         fmt::format("a multiple of {}", s.width), ""});
    }
    s.multipliers.push_back(channels / s.width);
  }
  const Settings settings = settings_of(checkpoint);
  settings.agree({"ch"}, s.width);
  settings.agree({"layers_per_block", "num_res_blocks"}, s.resnets);
  settings.agree({"latent_channels"}, s.latent_channels);
  std::vector<std::int64_t> channels;
  for (const std::int64_t multiplier : s.multipliers) channels.push_back(multiplier * s.width);
  if (const Json* said = settings.find("block_out_channels"); said != nullptr && *said != Json(channels)) {
    settings.fail("block_out_channels", shape_text(channels) + ", as the tensors say");
  }
  if (const Json* said = settings.find("ch_mult"); said != nullptr && *said != Json(s.multipliers)) {
    settings.fail("ch_mult", shape_text(s.multipliers) + ", as the tensors say");
  }
  s.groups = settings.integer("norm_num_groups").value_or(s.groups);
  if (s.groups == 0 || s.width % s.groups != 0) {
    throw ConfigError({checkpoint.path() + ": groups of the norms", fmt::format("{}", s.groups),
                       fmt::format("a divisor of the width {}", s.width), "see norm_num_groups in config.json"});
  }
  s.scale = settings.number("scaling_factor").value_or(s.scale);
  s.shift = settings.number("shift_factor", false).value_or(s.shift);
  checkpoint.check(vae_tensors(s));
  return s;
}

}  // namespace squareq
