// Pictures that show what a run has learnt so far.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/config.h"
#include "engine/encoders.h"
#include "engine/flux_engine.h"
#include "engine/model_parts.h"

namespace squareq {

class Previews {
 public:
  // `activations`: see Autoencoder.
  Previews(const TrainConfig& config, const ModelParts& parts, Device& device, const FluxShape& shape,
           std::int64_t text_tokens, std::optional<DType> activations = std::nullopt);

  // What an engine that draws has beside the sequences of training: sequence() as one that runs forward only, and the
  // decoder as a guest, whose weights are brought each time.
  const Sequence& sequence() const { return sequence_; }
  ArenaWork decoder_work() { return decoder_.work(); }

  // The text states of config.preview.prompts, before anything is drawn.
  void set_prompts(std::vector<TextStates> prompts) { prompts_ = std::move(prompts); }

  // Draws every prompt with an engine that has sequence() selected. Picture i is FOLDER/previews/NAME-000250-i.png;
  // previews/NAME.png shows those of all steps together, the newest at the bottom. Returns the paths of the pictures.
  std::vector<std::string> draw(FluxEngine& engine, std::int64_t step);

 private:
  std::vector<std::vector<float>> latents(FluxEngine& engine) const;
  std::string path(std::int64_t step, std::size_t prompt) const;
  void write_sheet(std::int64_t step) const;

  const TrainConfig& config_;
  PictureSize size_;
  Autoencoder decoder_;
  std::vector<TextStates> prompts_;
  Grid grid_;
  Sequence sequence_;
  std::vector<double> sigmas_;
};

}  // namespace squareq
