#include "engine/previews.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "engine/contact_sheet.h"
#include "engine/dataset.h"
#include "engine/sampler.h"
#include "io/file.h"
#include "kernels/base/random.h"
#include "model/flow_match.h"

namespace squareq {
namespace fs = std::filesystem;

namespace {

PictureSize preview_size(const TrainConfig& config) {
  const std::array<std::int64_t, 2> size = config.preview.size[0] > 0 ? config.preview.size : config.data.largest();
  return {.height = size[1], .width = size[0]};
}

}  // namespace

Previews::Previews(const TrainConfig& config, const ModelParts& parts, Device& device, const FluxShape& shape,
                   std::int64_t text_tokens, std::optional<DType> activations)
    : config_(config),
      size_(preview_size(config)),
      decoder_(device, parts.vae, Autoencoder::Half::kDecoder, {size_}, Autoencoder::kLargestTile, activations),
      grid_{.rows = size_.height / kTokenPixels, .cols = size_.width / kTokenPixels},
      sequence_(make_sequence(text_tokens, grid_)),
      sigmas_(sigma_schedule(config.preview.steps, read_schedule(parts, shape.guidance), grid_.tokens())) {}

// As many prompts at a time as a batch has samples; what fills the last batch is not kept.
std::vector<std::vector<float>> Previews::latents(FluxEngine& engine) const {
  const auto batch = static_cast<std::size_t>(engine.state().batch);
  const auto size = static_cast<std::size_t>(grid_.tokens() * engine.state().shape.out_channels);
  std::vector<std::vector<float>> results;
  for (std::size_t begin = 0; begin < prompts_.size(); begin += batch) {
    std::vector<float> values(batch * size);
    std::vector<FluxEngine::Sample> conditions;
    for (std::size_t slot = 0; slot < batch; ++slot) {
      const std::size_t prompt = std::min(begin + slot, prompts_.size() - 1);
      Random({.seed = config_.preview.seed + prompt, .purpose = Purpose::kSampleNoise})
          .fill_normal(std::span(values).subspan(slot * size, size));
      conditions.push_back(
          {.txt = prompts_[prompt].text, .y = prompts_[prompt].pooled, .guidance = config_.preview.guidance});
    }
    euler_sample(engine, conditions, sigmas_, values, [](std::size_t) {});
    for (std::size_t slot = 0; slot < std::min(batch, prompts_.size() - begin); ++slot) {
      const auto first = values.begin() + static_cast<std::ptrdiff_t>(slot * size);
      results.emplace_back(first, first + static_cast<std::ptrdiff_t>(size));
    }
  }
  return results;
}

std::string Previews::path(std::int64_t step, std::size_t prompt) const {
  return (fs::path(config_.output_dir) / "previews" / fmt::format("{}-{:06}-{}.png", config_.name, step, prompt))
      .string();
}

std::vector<std::string> Previews::draw(FluxEngine& engine, std::int64_t step) {
  const std::string folder = (fs::path(config_.output_dir) / "previews").string();
  fs::create_directories(folder);
  remove_abandoned(folder);
  const std::vector<std::vector<float>> drawn = latents(engine);
  decoder_.load_weights();
  std::vector<std::string> paths;
  for (std::size_t i = 0; i < drawn.size(); ++i) {
    const PngText text{
        {"parameters", fmt::format("{}\nSteps: {}, Guidance: {}, Seed: {}, Size: {}x{}, LoRA: {} at {}",
                                   config_.preview.prompts[i], config_.preview.steps, config_.preview.guidance,
                                   config_.preview.seed + i, size_.width, size_.height, config_.name, step)}};
    paths.push_back(path(step, i));
    write_png(paths.back(), image_of(decoder_.decode(drawn[i], size_), size_.height, size_.width), text);
  }
  write_sheet(step);
  return paths;
}

void Previews::write_sheet(std::int64_t step) const {
  constexpr int kSide = 192;
  constexpr std::size_t kRows = 100;  // more would not fit into one picture
  std::vector<SheetRow> rows;
  for (std::int64_t at = 0; at <= step; at = at < step ? std::min(at + config_.preview.every, step) : step + 1) {
    SheetRow row{.label = fmt::format("step {}", at)};
    bool any = false;
    for (std::size_t i = 0; i < prompts_.size(); ++i) {
      const bool there = fs::exists(path(at, i));
      row.files.push_back(there ? path(at, i) : "");
      any = any || there;
    }
    if (any) rows.push_back(std::move(row));
  }
  if (rows.size() > kRows) rows.erase(rows.begin(), rows.end() - kRows);
  write_png((fs::path(config_.output_dir) / "previews" / (config_.name + ".png")).string(), contact_sheet(rows, kSide));
}

}  // namespace squareq
