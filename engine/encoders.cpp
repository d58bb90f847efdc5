#include "engine/encoders.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>

#include "io/tokenizer_files.h"
#include "model/latent.h"

namespace squareq {
namespace {

t5::State t5_state(const Slab& slab, DType activations, std::int64_t text_tokens) {
  return {.shape = slab.t5_shape(),
          .batch = 1,
          .length = text_tokens,
          .activations = activations,
          .ids = std::vector<std::int32_t>(static_cast<std::size_t>(text_tokens))};
}

std::size_t measured(const std::function<void(Carver&)>& layout) {
  Carver carver;
  layout(carver);
  return carver.used();
}

}  // namespace

TextEncoder::TextEncoder(Device& device, const std::string& tokenizers, const std::string& clip,
                         const std::string& t5_slab, std::int64_t text_tokens, std::optional<DType> activations)
    : device_(device),
      clip_tokenizer_(read_clip_vocabulary(tokenizers + "/tokenizer")),
      t5_tokenizer_(read_t5_vocabulary(tokenizers + "/tokenizer_2")),
      clip_(Checkpoint::open(clip, Model::kClip)),
      clip_shape_(clip_shape(clip_)),
      clip_memory_(clip_, [this](WeightVisitor& visitor) { clip::weights(visitor, clip_shape_, clip_weights_); }),
      slab_(t5_slab),
      t5_(t5_state(slab_, activations.value_or(device.ops().activation_type()), text_tokens)) {}

Runner TextEncoder::t5_runner(SlabStore& store) { return {device_, store, t5::stages(t5_), Keep::kNothing}; }

void TextEncoder::allocate(Residency t5) {
  store_.emplace(slab_, device_, std::move(t5));
  t5_runner_.emplace(t5_runner(*store_));
  arena_ = Arena(device_, {.layout =
                               [&](Carver& carver) {
                                 clip_memory_.layout(carver);
                                 layout_activations(carver, *t5_runner_);
                                 store_->layout(carver, t5_runner_->stages());
                               },
                           .rehearse = [&](Ops&) { rehearse(*t5_runner_); }});
  clip_memory_.upload(device_);
}

void TextEncoder::layout_activations(Carver& carver, Runner& t5) {
  const std::int64_t length = clip_tokenizer_.max_length();
  clip::layout(carver, clip_shape_, t5_.activations, 1, length, clip_scratch_);
  clip_hidden_ = carver.take(DType::F32, 1, length, clip_shape_.width);
  clip_pooled_ = carver.take(DType::F32, 1, 1, clip_shape_.width);
  t5::layout(carver, t5_);
  t5.layout(carver);
}

void TextEncoder::rehearse(Runner& t5) {
  encode_clip(clip_ids(""));
  t5.rehearse();
}

std::size_t TextEncoder::clip_weight_bytes() {
  return measured([&](Carver& carver) { clip_memory_.layout(carver); });
}

std::size_t TextEncoder::activation_bytes() {
  SlabStore store(slab_, device_);
  Runner runner = t5_runner(store);
  return measured([&](Carver& carver) { layout_activations(carver, runner); });
}

std::size_t TextEncoder::scratch_bytes() {
  SlabStore store(slab_, device_);
  Runner runner = t5_runner(store);
  const ArenaWork work{.layout =
                           [&](Carver& carver) {
                             clip_memory_.layout(carver);
                             layout_activations(carver, runner);
                           },
                       .rehearse = [&](Ops&) { rehearse(runner); }};
  return measure_arena(device_, work).scratch;
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
  t5_runner_->forward();
  device_.download(t5_.output, states.text.data());
  return states;
}

Autoencoder::Autoencoder(Device& device, const std::string& path, Half half, const std::vector<PictureSize>& sizes,
                         std::int64_t largest_tile, std::optional<DType> activations)
    : device_(device),
      half_(half),
      activations_(activations.value_or(device.ops().activation_type())),
      checkpoint_(Checkpoint::open(path, Model::kVae)),
      shape_(vae_shape(checkpoint_)),
      network_(half == Half::kEncoder ? vae::make_encoder(shape_) : vae::make_decoder(shape_)),
      weights_(checkpoint_, [this](WeightVisitor& visitor) { vae::weights(visitor, network_); }) {
  for (const PictureSize& size : sizes) {
    places_.push_back({.size = size, .tiling = Tiling(size.height, size.width, largest_tile, shape_.factor())});
  }
}

void Autoencoder::layout(Carver& carver) {
  carver.take_alternatives(places_.size(), [&](std::size_t i) { layout(carver, places_[i]); });
}

void Autoencoder::layout(Carver& carver, Place& place) const {
  const std::int64_t height = place.tiling.height();
  const std::int64_t width = place.tiling.width();
  const std::int64_t latent = (height / shape_.factor()) * (width / shape_.factor());
  const auto workspace = [&](std::size_t bytes) {
    return carver.take(DType::U8, 1, 1, static_cast<std::int64_t>(bytes));
  };
  if (half_ == Half::kEncoder) {
    place.in = carver.take(DType::F32, 1, 3, height * width);
    place.workspace = workspace(vae::encode_workspace(shape_, activations_, 1, height, width));
    place.out = carver.take(DType::F32, 1, 2 * shape_.latent_channels, latent);
  } else {
    place.in = carver.take(DType::F32, 1, shape_.latent_channels, latent);
    place.workspace = workspace(vae::decode_workspace(shape_, activations_, 1, height, width));
    place.out = carver.take(DType::F32, 1, 3, height * width);
  }
}

void Autoencoder::compute(Ops& ops, const Place& place) const {
  const auto& pass = half_ == Half::kEncoder ? vae::encode : vae::decode;
  pass(ops, shape_, network_, place.in, place.tiling.height(), place.tiling.width(), place.workspace, place.out);
}

ArenaWork Autoencoder::work() {
  return {.layout =
              [this](Carver& carver) {
                weights_.layout(carver);
                layout(carver);
              },
          .rehearse =
              [this](Ops& ops) {
                for (const Place& place : places_) compute(ops, place);
              }};
}

void Autoencoder::allocate() {
  arena_.emplace(device_, work());
  load_weights();
}

std::size_t Autoencoder::weight_bytes() {
  return measured([&](Carver& carver) { weights_.layout(carver); });
}

std::size_t Autoencoder::activation_bytes() {
  return measured([&](Carver& carver) { layout(carver); });
}

std::vector<float> Autoencoder::encode(const std::vector<float>& pixels, PictureSize size) { return run(size, pixels); }

std::vector<float> Autoencoder::decode(const std::vector<float>& packed, PictureSize size) {
  std::vector<float> latent(packed.size());
  unpack_latent(packed, shape_.latent_channels, size.height / shape_.factor(), size.width / shape_.factor(), latent);
  latent_to_decoder(shape_, latent, latent);
  return run(size, latent);
}

std::vector<float> Autoencoder::run(PictureSize size, const std::vector<float>& values) {
  const auto place = std::ranges::find(places_, size, &Place::size);
  if (place == places_.end()) throw std::logic_error("Autoencoder: a picture of a size that was not announced");
  if (arena_) arena_->use();
  const std::int64_t in_unit = half_ == Half::kEncoder ? 1 : shape_.factor();
  const std::int64_t out_unit = half_ == Half::kEncoder ? shape_.factor() : 1;
  return place->tiling.map(values, in_unit, out_unit, [&](const std::vector<float>& tile) {
    device_.upload(tile.data(), place->in);
    compute(device_.ops(), *place);
    std::vector<float> result(static_cast<std::size_t>(place->out.count()));
    device_.download(place->out, result.data());
    return result;
  });
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
