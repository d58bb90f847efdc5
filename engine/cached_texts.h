// Prompts as text states, kept in the cache.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "engine/cache.h"
#include "engine/config.h"
#include "engine/encoders.h"
#include "engine/model_parts.h"
#include "kernels/device.h"

namespace squareq {

class CachedTexts {
 public:
  // text_tokens: length of the T5 states.
  CachedTexts(const TrainConfig& config, const ModelParts& parts, std::int64_t text_tokens);

  // Those that the cache lacks.
  std::set<std::string> missing(std::set<std::string> texts) const;

  // The encoders, without memory yet. Builds the slab of T5 if there is none. activations: see TextEncoder.
  std::unique_ptr<TextEncoder> open_encoder(Device& device, std::optional<DType> activations) const;

  // Encodes with progress on the console.
  void encode(TextEncoder& encoder, const std::set<std::string>& texts) const;

  // From the cache; for any thread. Throws FileError if the record is gone or damaged.
  TextStates load(const std::string& text) const;

  CacheKey key(const std::string& text) const;

 private:
  ModelParts parts_;
  std::string cache_dir_;
  std::int64_t threads_;
  std::int64_t text_tokens_;
  Cache cache_;
  std::string t5_identity_, clip_identity_, tokenizer_identity_;
};

}  // namespace squareq
