// The dataset as latents and text states, kept in the cache and read from there one sample at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "engine/cache.h"
#include "engine/cached_texts.h"
#include "engine/dataset.h"
#include "engine/encoders.h"
#include "engine/model_parts.h"
#include "engine/training_set.h"

namespace squareq {

class EncodedData {
 public:
  EncodedData(const TrainConfig& config, const ModelParts& parts, Dataset dataset, std::int64_t text_tokens);

  // Every text that a sample may have.
  std::set<std::string> texts() const;

  // Samples whose picture the cache lacks, each picture and size once.
  std::vector<Sample> missing_pictures() const;
  PictureSize size_of(const Sample& sample) const;

  // What encodes pictures of these sizes, without memory yet. activations: see Autoencoder.
  std::unique_ptr<Autoencoder> open_encoder(Device& device, const std::vector<PictureSize>& sizes,
                                            std::optional<DType> activations) const;

  // Encodes these samples, with progress on the console. Pictures are decoded by all threads ahead of need; what is
  // done is kept if the program ends on the way.
  void encode_pictures(Autoencoder& vae, const std::vector<Sample>& samples) const;

  // The samples, without `load`.
  TrainingSet training_set() const;

  // From the cache; for any thread. Throws FileError where a record is gone or damaged.
  EncodedExample load(const Draw& draw) const;

 private:
  std::vector<float> latent_of(Autoencoder& vae, const Image& image, const std::string& hash, bool mirrored) const;
  CacheKey latent_key_of(const Sample& sample) const;
  const FolderConfig& folder_of(const Picture& picture) const { return config_.data.folders[picture.folder]; }
  double weight_of(const FolderConfig& folder) const;

  TrainConfig config_;
  ModelParts parts_;
  Dataset dataset_;
  std::int64_t text_tokens_;
  std::vector<std::vector<std::string>> texts_;  // of each picture
  CachedTexts text_states_;
  Cache cache_;
  std::string vae_identity_;
};

}  // namespace squareq
