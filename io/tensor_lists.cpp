// Every tensor of each network, in execution order.
#include <fmt/format.h>

#include "io/tensor_names.h"

namespace squareq {
namespace {

class List {
 public:
  void add(std::string name, std::vector<std::int64_t> shape) {
    tensors_.push_back({std::move(name), std::move(shape)});
  }
  void linear(const std::string& name, std::int64_t out, std::int64_t in) {
    add(name + ".weight", {out, in});
    add(name + ".bias", {out});
  }
  void norm(const std::string& name, std::int64_t width) {
    add(name + ".weight", {width});
    add(name + ".bias", {width});
  }
  void conv(const std::string& name, std::int64_t out, std::int64_t in, std::int64_t side) {
    add(name + ".weight", {out, in, side, side});
    add(name + ".bias", {out});
  }
  std::vector<NamedShape> take() { return std::move(tensors_); }

 private:
  std::vector<NamedShape> tensors_;
};

void add_embedder(List& list, const std::string& name, std::int64_t hidden, std::int64_t in) {
  list.linear(name + ".in_layer", hidden, in);
  list.linear(name + ".out_layer", hidden, hidden);
}

void add_double_block(List& list, const FluxShape& s, std::int64_t i) {
  for (const char* stream : {"img", "txt"}) {
    const std::string prefix = fmt::format("double_blocks.{}.{}", i, stream);
    list.linear(prefix + "_mod.lin", 6 * s.hidden, s.hidden);
    list.linear(prefix + "_attn.qkv", 3 * s.hidden, s.hidden);
    list.add(prefix + "_attn.norm.query_norm.scale", {s.head_dim});
    list.add(prefix + "_attn.norm.key_norm.scale", {s.head_dim});
    list.linear(prefix + "_attn.proj", s.hidden, s.hidden);
    list.linear(prefix + "_mlp.0", s.mlp_hidden, s.hidden);
    list.linear(prefix + "_mlp.2", s.hidden, s.mlp_hidden);
  }
}

void add_single_block(List& list, const FluxShape& s, std::int64_t i) {
  const std::string prefix = fmt::format("single_blocks.{}.", i);
  list.linear(prefix + "modulation.lin", 3 * s.hidden, s.hidden);
  list.linear(prefix + "linear1", 3 * s.hidden + s.mlp_hidden, s.hidden);
  list.add(prefix + "norm.query_norm.scale", {s.head_dim});
  list.add(prefix + "norm.key_norm.scale", {s.head_dim});
  list.linear(prefix + "linear2", s.hidden, s.hidden + s.mlp_hidden);
}

void add_resnet(List& list, const std::string& name, std::int64_t in, std::int64_t out) {
  list.norm(name + ".norm1", in);
  list.conv(name + ".conv1", out, in, 3);
  list.norm(name + ".norm2", out);
  list.conv(name + ".conv2", out, out, 3);
  if (in != out) list.conv(name + ".nin_shortcut", out, in, 1);
}

void add_middle(List& list, const std::string& name, std::int64_t width) {
  add_resnet(list, name + ".block_1", width, width);
  list.norm(name + ".attn_1.norm", width);
  for (const char* part : {"q", "k", "v", "proj_out"}) list.conv(name + ".attn_1." + part, width, width, 1);
  add_resnet(list, name + ".block_2", width, width);
}

void add_vae_encoder(List& list, const VaeShape& s) {
  const auto levels = static_cast<std::int64_t>(s.multipliers.size());
  list.conv("encoder.conv_in", s.width, 3, 3);
  std::int64_t in = s.width;
  for (std::int64_t l = 0; l < levels; ++l) {
    const std::int64_t out = s.width * s.multipliers[static_cast<std::size_t>(l)];
    for (std::int64_t b = 0; b < s.resnets; ++b, in = out) {
      add_resnet(list, fmt::format("encoder.down.{}.block.{}", l, b), in, out);
    }
    if (l + 1 < levels) list.conv(fmt::format("encoder.down.{}.downsample.conv", l), out, out, 3);
  }
  add_middle(list, "encoder.mid", in);
  list.norm("encoder.norm_out", in);
  list.conv("encoder.conv_out", 2 * s.latent_channels, in, 3);
}

void add_vae_decoder(List& list, const VaeShape& s) {
  const auto levels = static_cast<std::int64_t>(s.multipliers.size());
  std::int64_t in = s.width * s.multipliers.back();
  list.conv("decoder.conv_in", in, s.latent_channels, 3);
  add_middle(list, "decoder.mid", in);
  for (std::int64_t l = levels - 1; l >= 0; --l) {
    const std::int64_t out = s.width * s.multipliers[static_cast<std::size_t>(l)];
    for (std::int64_t b = 0; b <= s.resnets; ++b, in = out) {
      add_resnet(list, fmt::format("decoder.up.{}.block.{}", l, b), in, out);
    }
    if (l > 0) list.conv(fmt::format("decoder.up.{}.upsample.conv", l), out, out, 3);
  }
  list.norm("decoder.norm_out", in);
  list.conv("decoder.conv_out", 3, in, 3);
}

}  // namespace

std::vector<NamedShape> flux_tensors(const FluxShape& s) {
  List list;
  list.linear("img_in", s.hidden, s.in_channels);
  list.linear("txt_in", s.hidden, s.context_in);
  add_embedder(list, "time_in", s.hidden, FluxShape::kTimeEmbedding);
  if (s.guidance) add_embedder(list, "guidance_in", s.hidden, FluxShape::kTimeEmbedding);
  add_embedder(list, "vector_in", s.hidden, s.vector_in);
  for (std::int64_t i = 0; i < s.double_blocks; ++i) add_double_block(list, s, i);
  for (std::int64_t i = 0; i < s.single_blocks; ++i) add_single_block(list, s, i);
  list.linear("final_layer.adaLN_modulation.1", 2 * s.hidden, s.hidden);
  list.linear("final_layer.linear", s.out_channels, s.hidden);
  return list.take();
}

std::vector<NamedShape> t5_tensors(const T5Shape& s) {
  List list;
  const std::int64_t inner = s.heads * s.head_dim;
  list.add("shared.weight", {s.vocab, s.width});
  for (std::int64_t i = 0; i < s.layers; ++i) {
    const std::string attention = fmt::format("encoder.block.{}.layer.0.", i);
    list.add(attention + "layer_norm.weight", {s.width});
    for (const char* part : {"q", "k", "v"}) {
      list.add(fmt::format("{}SelfAttention.{}.weight", attention, part), {inner, s.width});
    }
    if (i == 0) list.add(attention + "SelfAttention.relative_attention_bias.weight", {s.buckets, s.heads});
    list.add(attention + "SelfAttention.o.weight", {s.width, inner});
    const std::string feed_forward = fmt::format("encoder.block.{}.layer.1.", i);
    list.add(feed_forward + "layer_norm.weight", {s.width});
    list.add(feed_forward + "DenseReluDense.wi_0.weight", {s.mlp_hidden, s.width});
    list.add(feed_forward + "DenseReluDense.wi_1.weight", {s.mlp_hidden, s.width});
    list.add(feed_forward + "DenseReluDense.wo.weight", {s.width, s.mlp_hidden});
  }
  list.add("encoder.final_layer_norm.weight", {s.width});
  return list.take();
}

std::vector<NamedShape> clip_tensors(const ClipShape& s) {
  List list;
  list.add("text_model.embeddings.token_embedding.weight", {s.vocab, s.width});
  list.add("text_model.embeddings.position_embedding.weight", {s.positions, s.width});
  for (std::int64_t i = 0; i < s.layers; ++i) {
    const std::string layer = fmt::format("text_model.encoder.layers.{}.", i);
    list.norm(layer + "layer_norm1", s.width);
    for (const char* part : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
      list.linear(layer + "self_attn." + part, s.width, s.width);
    }
    list.norm(layer + "layer_norm2", s.width);
    list.linear(layer + "mlp.fc1", s.mlp_hidden, s.width);
    list.linear(layer + "mlp.fc2", s.width, s.mlp_hidden);
  }
  list.norm("text_model.final_layer_norm", s.width);
  return list.take();
}

std::vector<NamedShape> vae_tensors(const VaeShape& s) {
  List list;
  add_vae_encoder(list, s);
  add_vae_decoder(list, s);
  return list.take();
}

}  // namespace squareq
