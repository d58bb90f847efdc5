// Prompts to text states, pictures to latents and back, with a model's own encoders and tokenizers.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "engine/arena.h"
#include "engine/loaded_weights.h"
#include "engine/runner.h"
#include "engine/tiles.h"
#include "io/checkpoint.h"
#include "io/image.h"
#include "io/slab.h"
#include "kernels/device.h"
#include "model/clip.h"
#include "model/t5.h"
#include "model/text/clip_tokenizer.h"
#include "model/text/t5_tokenizer.h"
#include "model/vae.h"

namespace squareq {

struct TextStates {
  std::vector<float> text;    // T5 [text tokens, width]
  std::vector<float> pooled;  // CLIP [width]
};

// Both encoders take the type that activations have on the device, or on another one for which memory is planned.
class TextEncoder {
 public:
  // `tokenizers` holds tokenizer/ and tokenizer_2/; `clip` is a checkpoint; `t5_slab` a slab. text_tokens: length that
  // every prompt is cut or padded to; padding is attended to, as the model was trained. Nothing is allocated yet.
  TextEncoder(Device& device, const std::string& tokenizers, const std::string& clip, const std::string& t5_slab,
              std::int64_t text_tokens, std::optional<DType> activations = std::nullopt);
  TextEncoder(const TextEncoder&) = delete;
  TextEncoder& operator=(const TextEncoder&) = delete;

  // Allocates what encode() needs. Where the weights of T5 are does not change what comes out.
  void allocate(Residency t5 = {});
  TextStates encode(const std::string& prompt);

  std::vector<std::int32_t> t5_ids(const std::string& prompt) const;
  std::vector<std::int32_t> clip_ids(const std::string& prompt) const;
  std::int64_t clip_length() const { return clip_tokenizer_.max_length(); }
  DType activations() const { return t5_.activations; }

  // For planning, each without what the others count.
  const Slab& t5_slab() const { return slab_; }
  std::size_t clip_weight_bytes();
  std::size_t activation_bytes();
  std::size_t scratch_bytes();  // of operations on the device

 private:
  void layout_activations(Carver& carver, Runner& t5);
  void rehearse(Runner& t5);
  void encode_clip(const std::vector<std::int32_t>& ids);
  Runner t5_runner(SlabStore& store);

  Device& device_;
  ClipTokenizer clip_tokenizer_;
  T5Tokenizer t5_tokenizer_;
  Checkpoint clip_;
  ClipShape clip_shape_;
  clip::Weights clip_weights_;
  LoadedWeights clip_memory_;
  clip::Scratch clip_scratch_;
  View clip_hidden_, clip_pooled_;
  Slab slab_;
  t5::State t5_;
  Arena arena_;  // outlives the store, which copies into it
  std::optional<SlabStore> store_;
  std::optional<Runner> t5_runner_;
};

struct PictureSize {
  std::int64_t height = 0;  // pixels
  std::int64_t width = 0;
  bool operator==(const PictureSize&) const = default;
};

// One half of a model's autoencoder, for pictures of some sizes.
class Autoencoder {
 public:
  enum class Half : std::uint8_t { kEncoder, kDecoder };
  // Pixels along a side up to which a picture is one tile: larger ones go in several (engine/tiles.h).
  static constexpr std::int64_t kLargestTile = 1024;

  // `path`: a checkpoint of the autoencoder in any layout. Nothing is allocated yet.
  Autoencoder(Device& device, const std::string& path, Half half, const std::vector<PictureSize>& sizes,
              std::int64_t largest_tile = kLargestTile, std::optional<DType> activations = std::nullopt);
  Autoencoder(const Autoencoder&) = delete;
  Autoencoder& operator=(const Autoencoder&) = delete;

  const VaeShape& shape() const { return shape_; }

  // Memory of its own, with the weights in it.
  void allocate();
  // Or memory in the arena of somebody else, in use there when weights are loaded and until the last picture is done.
  ArenaWork work();
  void load_weights() { weights_.upload(device_); }

  // Pixels [3, height * width] in [-1, 1] to moments [2 z, n]; see model/vae.h.
  std::vector<float> encode(const std::vector<float>& pixels, PictureSize size);
  // Normalised packed latent [tokens, 4 z] of a picture of this size to its pixels [3, height * width], not clamped.
  std::vector<float> decode(const std::vector<float>& packed, PictureSize size);

  // For planning, without the scratch of operations.
  std::size_t weight_bytes();
  std::size_t activation_bytes();

 private:
  // Views for one size of picture.
  struct Place {
    PictureSize size;
    Tiling tiling;
    View in, workspace, out;
  };

  void layout(Carver& carver);
  void layout(Carver& carver, Place& place) const;
  void compute(Ops& ops, const Place& place) const;
  std::vector<float> run(PictureSize size, const std::vector<float>& values);

  Device& device_;
  Half half_;
  DType activations_;
  Checkpoint checkpoint_;
  VaeShape shape_;
  vae::Network network_;
  LoadedWeights weights_;
  std::vector<Place> places_;
  std::optional<Arena> arena_;
};

// Bytes to [-1, 1] in planes, u8 / 127.5 - 1; and back with clamping and rounding, round(255 (x / 2 + 0.5)).
std::vector<float> pixels_of(const Image& image);
Image image_of(const std::vector<float>& pixels, std::int64_t height, std::int64_t width);

}  // namespace squareq
