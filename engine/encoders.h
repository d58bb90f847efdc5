// Prompts to text states, pictures to latents and back, with a model's own encoders and tokenizers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/arena.h"
#include "engine/loaded_weights.h"
#include "engine/runner.h"
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

class TextEncoder {
 public:
  // `tokenizers` holds tokenizer/ and tokenizer_2/; `clip` is a checkpoint; `t5_slab` a slab. text_tokens: length that
  // every prompt is cut or padded to; padding is attended to, as the model was trained.
  TextEncoder(Device& device, const std::string& tokenizers, const std::string& clip, const std::string& t5_slab,
              std::int64_t text_tokens);

  TextStates encode(const std::string& prompt);

  std::vector<std::int32_t> t5_ids(const std::string& prompt) const;
  std::vector<std::int32_t> clip_ids(const std::string& prompt) const;
  std::int64_t clip_length() const { return clip_tokenizer_.max_length(); }

 private:
  void layout(Carver& carver);
  void encode_clip(const std::vector<std::int32_t>& ids);

  Device& device_;
  ClipTokenizer clip_tokenizer_;
  T5Tokenizer t5_tokenizer_;
  ClipShape clip_shape_;
  clip::Weights clip_weights_;
  std::unique_ptr<LoadedWeights> clip_memory_;
  clip::Scratch clip_scratch_;
  View clip_hidden_, clip_pooled_;
  Slab slab_;
  Arena arena_;  // outlives the store, which copies into it
  SlabStore store_;
  t5::State t5_;
  Runner t5_runner_;
};

class Autoencoder {
 public:
  // Pixels along a side up to which a picture is one tile: larger ones go in several (engine/tiles.h).
  static constexpr std::int64_t kLargestTile = 1024;

  // `path`: a checkpoint of the autoencoder in any layout.
  Autoencoder(Device& device, const std::string& path, std::int64_t largest_tile = kLargestTile);

  const VaeShape& shape() const { return shape_; }

  // Pixels [3, height * width] in [-1, 1] to moments [2 z, n]; see model/vae.h.
  std::vector<float> encode(const std::vector<float>& pixels, std::int64_t height, std::int64_t width);
  // Normalised packed latent [tokens, 4 z] of a picture of this size to its pixels [3, height * width], not clamped.
  std::vector<float> decode(const std::vector<float>& packed, std::int64_t height, std::int64_t width);

 private:
  // `work` on `values`, uploaded into `in`, gives `out`; both in the arena.
  std::vector<float> run(const Arena& arena, const std::function<void(Ops&)>& work, const std::vector<float>& values,
                         const View& in, const View& out);

  Device& device_;
  std::int64_t largest_tile_;
  VaeShape shape_;
  std::unique_ptr<LoadedWeights> memory_;
  vae::Network encoder_, decoder_;
};

// Bytes to [-1, 1] in planes, u8 / 127.5 - 1; and back with clamping and rounding, round(255 (x / 2 + 0.5)).
std::vector<float> pixels_of(const Image& image);
Image image_of(const std::vector<float>& pixels, std::int64_t height, std::int64_t width);

}  // namespace squareq
