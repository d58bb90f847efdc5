#include "engine/encoders.h"

#include <algorithm>
#include <cmath>

#include "engine/tiles.h"
#include "io/checkpoint.h"
#include "io/tokenizer_files.h"
#include "model/latent.h"

namespace squareq {
namespace {

t5::State t5_state(const Slab& slab, Device& device, std::int64_t text_tokens) {
  return {.shape = slab.t5_shape(),
          .batch = 1,
          .length = text_tokens,
          .activations = device.ops().activation_type(),
          .ids = std::vector<std::int32_t>(static_cast<std::size_t>(text_tokens))};
}

}  // namespace

TextEncoder::TextEncoder(Device& device, const std::string& tokenizers, const std::string& clip,
                         const std::string& t5_slab, std::int64_t text_tokens)
    : device_(device),
      clip_tokenizer_(read_clip_vocabulary(tokenizers + "/tokenizer")),
      t5_tokenizer_(read_t5_vocabulary(tokenizers + "/tokenizer_2")),
      slab_(t5_slab),
      store_(slab_, device),
      t5_(t5_state(slab_, device, text_tokens)),
      t5_runner_(device, store_, t5::stages(t5_), Keep::kNothing) {
  const Checkpoint checkpoint = Checkpoint::open(clip, Model::kClip);
  clip_shape_ = clip_shape(checkpoint);
  clip_memory_ = std::make_unique<LoadedWeights>(checkpoint, device);
  clip::weights(*clip_memory_, clip_shape_, clip_weights_);
  arena_ = Arena(
      device_, [&](Carver& carver) { layout(carver); },
      [&](Ops&) {
        encode_clip(clip_ids(""));
        t5_runner_.rehearse();
      });
}

void TextEncoder::layout(Carver& carver) {
  const std::int64_t length = clip_tokenizer_.max_length();
  clip::layout(carver, clip_shape_, device_.ops().activation_type(), 1, length, clip_scratch_);
  clip_hidden_ = carver.take(DType::F32, 1, length, clip_shape_.width);
  clip_pooled_ = carver.take(DType::F32, 1, 1, clip_shape_.width);
  t5::layout(carver, t5_);
  store_.layout(carver, t5_runner_.stages());
  t5_runner_.layout(carver);
}

std::vector<std::int32_t> TextEncoder::t5_ids(const std::string& prompt) const {
  const auto length = static_cast<std::int32_t>(t5_.length);
  return t5_tokenizer_.pad(t5_tokenizer_.encode(prompt, length), length);
}

std::vector<std::int32_t> TextEncoder::clip_ids(const std::string& prompt) const {
  return clip_tokenizer_.encode_padded(prompt);
}

void TextEncoder::encode_clip(const std::vector<std::int32_t>& ids) {
  clip::forward(device_.ops(), clip_shape_, clip_weights_, ids, clip_scratch_, clip_hidden_, clip_pooled_);
}

TextStates TextEncoder::encode(const std::string& prompt) {
  TextStates states;
  states.text.resize(static_cast<std::size_t>(t5_.length * t5_.shape.width));
  states.pooled.resize(static_cast<std::size_t>(clip_shape_.width));
  arena_.use();
  encode_clip(clip_ids(prompt));
  device_.download(clip_pooled_, states.pooled.data());
  t5_.ids = t5_ids(prompt);
  t5_runner_.forward();
  device_.download(t5_.output, states.text.data());
  return states;
}

Autoencoder::Autoencoder(Device& device, const std::string& path, std::int64_t largest_tile)
    : device_(device), largest_tile_(largest_tile) {
  const Checkpoint checkpoint = Checkpoint::open(path, Model::kVae);
  shape_ = vae_shape(checkpoint);
  memory_ = std::make_unique<LoadedWeights>(checkpoint, device);
  encoder_ = vae::make_encoder(shape_);
  decoder_ = vae::make_decoder(shape_);
  vae::weights(*memory_, encoder_);
  vae::weights(*memory_, decoder_);
}

std::vector<float> Autoencoder::encode(const std::vector<float>& pixels, std::int64_t height, std::int64_t width) {
  const Tiling tiling(height, width, largest_tile_, shape_.factor());
  const std::int64_t latent = (tiling.height() / shape_.factor()) * (tiling.width() / shape_.factor());
  const std::size_t bytes =
      vae::encode_workspace(shape_, device_.ops().activation_type(), 1, tiling.height(), tiling.width());
  View image, workspace, moments;
  const auto layout = [&](Carver& carver) {
    image = carver.take(DType::F32, 1, 3, tiling.height() * tiling.width());
    workspace = carver.take(DType::U8, 1, 1, static_cast<std::int64_t>(bytes));
    moments = carver.take(DType::F32, 1, 2 * shape_.latent_channels, latent);
  };
  const auto work = [&](Ops& ops) {
    vae::encode(ops, shape_, encoder_, image, tiling.height(), tiling.width(), workspace, moments);
  };
  const Arena arena(device_, layout, work);
  return tiling.map(pixels, 1, shape_.factor(),
                    [&](const std::vector<float>& tile) { return run(arena, work, tile, image, moments); });
}

std::vector<float> Autoencoder::decode(const std::vector<float>& packed, std::int64_t height, std::int64_t width) {
  std::vector<float> latent(packed.size());
  unpack_latent(packed, shape_.latent_channels, height / shape_.factor(), width / shape_.factor(), latent);
  latent_to_decoder(shape_, latent, latent);
  const Tiling tiling(height, width, largest_tile_, shape_.factor());
  const std::int64_t rows = tiling.height() / shape_.factor();
  const std::int64_t cols = tiling.width() / shape_.factor();
  const std::size_t bytes =
      vae::decode_workspace(shape_, device_.ops().activation_type(), 1, tiling.height(), tiling.width());
  View z, workspace, image;
  const auto layout = [&](Carver& carver) {
    z = carver.take(DType::F32, 1, shape_.latent_channels, rows * cols);
    workspace = carver.take(DType::U8, 1, 1, static_cast<std::int64_t>(bytes));
    image = carver.take(DType::F32, 1, 3, tiling.height() * tiling.width());
  };
  const auto work = [&](Ops& ops) {
    vae::decode(ops, shape_, decoder_, z, tiling.height(), tiling.width(), workspace, image);
  };
  const Arena arena(device_, layout, work);
  return tiling.map(latent, shape_.factor(), 1,
                    [&](const std::vector<float>& tile) { return run(arena, work, tile, z, image); });
}

std::vector<float> Autoencoder::run(const Arena& arena, const std::function<void(Ops&)>& work,
                                    const std::vector<float>& values, const View& in, const View& out) {
  arena.use();
  device_.upload(values.data(), in);
  work(device_.ops());
  std::vector<float> result(static_cast<std::size_t>(out.count()));
  device_.download(out, result.data());
  device_.ops().use_scratch({});  // the arena's memory goes
  return result;
}

std::vector<float> pixels_of(const Image& image) {
  const std::size_t count = static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height);
  std::vector<float> pixels(3 * count);
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t c = 0; c < 3; ++c)
      pixels[c * count + i] = static_cast<float>(image.rgb[3 * i + c]) / 127.5F - 1.0F;
  }
  return pixels;
}

Image image_of(const std::vector<float>& pixels, std::int64_t height, std::int64_t width) {
  const auto count = static_cast<std::size_t>(height * width);
  Image image{.width = static_cast<int>(width), .height = static_cast<int>(height), .rgb = {}};
  image.rgb.resize(3 * count);
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t c = 0; c < 3; ++c) {
      const float value = std::clamp(pixels[c * count + i], -1.0F, 1.0F);
      image.rgb[3 * i + c] = static_cast<std::uint8_t>(std::lround(255.0F * (value * 0.5F + 0.5F)));
    }
  }
  return image;
}

}  // namespace squareq
