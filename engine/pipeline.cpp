#include "engine/pipeline.h"

#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>

#include "engine/dataset.h"
#include "engine/encoded_data.h"
#include "engine/identity.h"
#include "engine/progress_log.h"
#include "io/checkpoint.h"
#include "io/slab_build.h"
#include "kernels/base/error.h"

namespace squareq {
namespace fs = std::filesystem;
namespace {

bool is_slab(const std::string& path) { return fs::is_regular_file(path) && path.ends_with(".slab"); }

// Sizes with their samples, and what was left out.
void log_dataset(const Dataset& dataset) {
  constexpr std::size_t kShown = 5;
  for (std::uint32_t i = 0; i < dataset.buckets.size(); ++i) {
    const auto count = std::count_if(dataset.samples.begin(), dataset.samples.end(),
                                     [&](const Sample& sample) { return sample.bucket == i; });
    spdlog::info("data: {} x {}: {} pictures", dataset.buckets[i].width, dataset.buckets[i].height, count);
  }
  for (std::size_t i = 0; i < std::min(kShown, dataset.findings.size()); ++i) {
    spdlog::warn("data: {}", Error(dataset.findings[i].problem).what());
  }
  if (dataset.findings.size() > kShown) {
    spdlog::warn("data: {} more; squareq-train CONFIG --check-data lists them", dataset.findings.size() - kShown);
  }
}

std::int64_t text_tokens_of(const TrainConfig& config, const ModelParts& parts, const FluxShape& shape) {
  return config.data.text_length > 0 ? config.data.text_length : text_length(parts, shape.guidance);
}

}  // namespace

std::string ensure_slab(const SlabRequest& request) {
  if (is_slab(request.checkpoint)) return request.checkpoint;
  const char* codec = request.codec == Codec::kFloat ? "float" : "int8";
  std::string path = request.slab;
  if (path.empty()) {
    const std::string identity = model_identity(request.checkpoint).substr(0, 16);
    std::string stem = fmt::format("{}-{}-{}", request.t5 ? "t5" : "flux", identity, codec);
    if (request.axes) stem += fmt::format("-axes{}", fmt::join(*request.axes, "x"));
    path = (fs::path(request.cache_dir) / (stem + ".slab")).string();
  }
  if (fs::exists(path)) return path;
  require_part(request.checkpoint, request.t5 ? "t5" : "transformer", "checkpoint to build a slab from");
  fs::create_directories(fs::absolute(path).parent_path());
  const Checkpoint checkpoint = Checkpoint::open(request.checkpoint, request.t5 ? Model::kT5 : Model::kTransformer);
  SlabShape shape;
  if (request.t5) {
    shape = t5_shape(checkpoint);
  } else {
    std::optional<nlohmann::json> config;
    if (request.axes) config = nlohmann::json{{"axes_dims_rope", *request.axes}};
    shape = flux_shape(checkpoint, config);
  }
  spdlog::info("building {} from {}", path, request.checkpoint);
  ProgressLog log("slab");
  build_slab(checkpoint, shape, path,
             {.codec = request.codec, .threads = request.threads, .progress = [&](const SlabProgress& p) {
                log(static_cast<double>(p.done), static_cast<double>(p.total));
              }});
  return path;
}

std::unique_ptr<Device> open_device(TrainConfig::Device device, std::int64_t threads, const DeviceOptions& options) {
  using Where = TrainConfig::Device;
  const bool cuda = device == Where::kCuda || (device == Where::kAuto && cuda_device_present());
  std::unique_ptr<Device> opened = cuda ? make_cuda_device(options) : make_cpu_device(static_cast<int>(threads));
  if (!opened->choices().empty()) spdlog::info("{}: {}", opened->name(), opened->choices());
  return opened;
}

std::unique_ptr<Device> open_device(const std::string& name, std::int64_t threads, const DeviceOptions& options) {
  if (name == "cuda") return open_device(TrainConfig::Device::kCuda, threads, options);
  return open_device(name == "cpu" ? TrainConfig::Device::kCpu : TrainConfig::Device::kAuto, threads, options);
}

ModelParts configured_parts(const TrainConfig& config) {
  ModelParts parts = config.model.empty() ? ModelParts{} : find_model_parts(config.model);
  const auto replace = [](std::string& part, const std::string& path) {
    if (!path.empty()) part = path;
  };
  replace(parts.transformer, config.transformer);
  replace(parts.vae, config.vae);
  replace(parts.clip, config.clip);
  replace(parts.t5, config.t5);
  replace(parts.tokenizers, config.tokenizers);
  require_part(parts.vae, "vae", "autoencoder");
  require_part(parts.clip, "clip", "CLIP text model");
  require_part(parts.t5, "t5", "T5 encoder");
  require_part(parts.tokenizers, "tokenizers", "folder with tokenizer/ and tokenizer_2/");
  return parts;
}

TrainingSet load_training_set(const TrainConfig& config, const ModelParts& parts, const FluxShape& shape,
                              Device& device) {
  Dataset dataset = inspect_dataset(config.data, static_cast<int>(config.threads), Inspection::kHeaders);
  require_trainable(dataset);
  log_dataset(dataset);
  const std::int64_t text_tokens = text_tokens_of(config, parts, shape);
  const auto encoded = std::make_shared<EncodedData>(config, parts, std::move(dataset), text_tokens);
  encoded->encode(device);
  TrainingSet set = encoded->training_set();
  set.load = [encoded](const Draw& draw) { return encoded->load(draw); };
  const EncodedExample first = set.load({});
  const std::int64_t tokens = set.grids[set.samples.front().bucket].tokens();
  if (tokens * shape.in_channels != static_cast<std::int64_t>(first.latent.size()) ||
      set.text_tokens * shape.context_in != static_cast<std::int64_t>(first.text.size()) ||
      shape.vector_in != static_cast<std::int64_t>(first.pooled.size())) {
    throw ConfigError({.where = config.model,
                       .found = "encoders whose outputs do not fit the transformer",
                       .expected = "latents of " + std::to_string(shape.in_channels) +
                                   " channels, T5 states of width " + std::to_string(shape.context_in) +
                                   " and a CLIP state of width " + std::to_string(shape.vector_in),
                       .advice = "use the autoencoder and text encoders of the same model"});
  }
  return set;
}

TrainingSet load_validation_set(const TrainConfig& config, const ModelParts& parts, const FluxShape& shape,
                                Device& device) {
  if (config.validation.folder.empty()) return {};
  TrainConfig held_out = config;
  held_out.data.folder = config.validation.folder;
  held_out.data.folders = {{.folder = config.validation.folder}};
  return load_training_set(held_out, parts, shape, device);
}

std::unique_ptr<Previews> make_previews(const TrainConfig& config, const ModelParts& parts, const FluxShape& shape,
                                        Device& device) {
  const std::vector<std::string>& prompts = config.preview.prompts;
  if (prompts.empty()) return {};
  const std::int64_t text_tokens = text_tokens_of(config, parts, shape);
  const CachedTexts texts(config, parts, text_tokens);
  texts.encode(device, {prompts.begin(), prompts.end()});
  std::vector<TextStates> states;
  states.reserve(prompts.size());
  for (const std::string& prompt : prompts) states.push_back(texts.load(prompt));
  return std::make_unique<Previews>(config, parts, device, std::move(states), shape, text_tokens);
}

}  // namespace squareq
