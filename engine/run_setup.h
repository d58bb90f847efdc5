// A training run before it starts: its data and previews are known, its memory is planned, and then all is encoded.
#pragma once

#include <memory>
#include <optional>

#include "engine/config.h"
#include "engine/encoding.h"
#include "engine/memory_plan.h"
#include "engine/model_parts.h"
#include "engine/training_run.h"

namespace squareq {

class RunSetup {
 public:
  // Inspects the pictures of the configuration. Throws FormatError where they cannot be trained on. `activations`: type
  // of activations on the device for which memory is planned, if it is not `device`. Arguments outlive this object.
  RunSetup(const TrainConfig& config, const ModelParts& parts, const Slab& slab, Device& device,
           std::optional<DType> activations = std::nullopt);

  // For the device, in config.vram_budget_gb, with its calibrated rates; and for a card that is not there. Throw
  // ConfigError if a phase does not fit.
  MemoryPlan plan();
  MemoryPlan plan(const DeviceRates& card);

  // Encodes what the cache lacks, within the plan if there is one. To be called once. Throws ConfigError if the
  // encoders do not belong to the transformer.
  RunInputs encode(std::optional<MemoryPlan> plan);

 private:
  std::shared_ptr<const EncodedData> open(const TrainConfig& config) const;
  TrainingSet training_set(const std::shared_ptr<const EncodedData>& data) const;

  const TrainConfig& config_;
  const ModelParts& parts_;
  const Slab& slab_;
  Device& device_;
  std::optional<DType> activations_;
  std::int64_t text_tokens_ = 0;
  CachedTexts texts_;
  std::shared_ptr<const EncodedData> data_, validation_;  // no validation: null
  std::optional<Encoding> encoding_;
  RunInputs inputs_;  // they load nothing before encode()
};

}  // namespace squareq
