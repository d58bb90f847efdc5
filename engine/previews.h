// Pictures that show what a run has learnt so far.
#pragma once

#include <string>
#include <vector>

#include "engine/config.h"
#include "engine/encoders.h"
#include "engine/flux_engine.h"
#include "engine/model_parts.h"

namespace squareq {

class Previews {
 public:
  // `prompts`: the text states of config.preview.prompts.
  Previews(const TrainConfig& config, const ModelParts& parts, Device& device, std::vector<TextStates> prompts,
           const FluxShape& shape, std::int64_t text_tokens);

  const Sequence& sequence() const { return sequence_; }

  // Draws every prompt with an engine that has sequence() selected. Picture i is FOLDER/previews/NAME-000250-i.png;
  // previews/NAME.png shows those of all steps together, the newest at the bottom. Returns the paths of the pictures.
  std::vector<std::string> draw(FluxEngine& engine, std::int64_t step);

 private:
  std::vector<std::vector<float>> latents(FluxEngine& engine) const;
  std::string path(std::int64_t step, std::size_t prompt) const;
  void write_sheet(std::int64_t step) const;

  const TrainConfig& config_;
  Device& device_;
  std::string vae_;
  std::vector<TextStates> prompts_;
  std::int64_t width_ = 0, height_ = 0;  // pixels
  Grid grid_;
  Sequence sequence_;
  std::vector<double> sigmas_;
};

}  // namespace squareq
