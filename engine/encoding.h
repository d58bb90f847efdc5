// The phases before training: what the cache lacks of a run's texts and pictures is encoded, all texts in one go, then
// all pictures. Each encoder has memory only during its phase.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "engine/cached_texts.h"
#include "engine/encoded_data.h"
#include "engine/encoders.h"
#include "engine/memory_plan.h"

namespace squareq {

class Encoding {
 public:
  // Opens the encoders for what is missing of the data and of more texts; they are not opened if nothing is. `data`
  // and `texts` outlive this object. activations: see TextEncoder.
  Encoding(Device& device, std::vector<const EncodedData*> data, const CachedTexts& texts,
           std::set<std::string> more_texts = {}, std::optional<DType> activations = std::nullopt);

  // Of the phases that there will be. scratch: of the operations, where it cannot be found by a rehearsal.
  std::vector<EncoderSizes> sizes(std::optional<std::size_t> scratch = std::nullopt);

  // Encodes. `residency` is that of the phases whose weights may stream (see MemoryPlan::encoders).
  void run(const std::map<std::string, Residency>& residency = {});

 private:
  Device& device_;
  std::vector<const EncodedData*> data_;
  const CachedTexts& texts_;
  std::set<std::string> missing_texts_;
  std::vector<std::vector<Sample>> missing_pictures_;  // as data_
  std::unique_ptr<TextEncoder> text_encoder_;
  std::unique_ptr<Autoencoder> picture_encoder_;
};

}  // namespace squareq
