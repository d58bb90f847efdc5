#include "engine/pipeline.h"

#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <filesystem>

#include "engine/cache.h"
#include "engine/dataset.h"
#include "engine/identity.h"
#include "io/checkpoint.h"
#include "io/slab_build.h"
#include "kernels/base/error.h"
#include "kernels/base/random.h"
#include "model/latent.h"

namespace squareq {
namespace fs = std::filesystem;
namespace {

bool is_slab(const std::string& path) { return fs::is_regular_file(path) && path.ends_with(".slab"); }

class ProgressLog {
 public:
  explicit ProgressLog(std::string what) : what_(std::move(what)) {}

  // At most one line a second, and one at the end.
  void operator()(double done, double total) {
    const double seconds = elapsed(start_);
    if (elapsed(last_) < 1.0 && done < total) return;
    last_ = Clock::now();
    spdlog::info("{}: {:.0f} %  ETA {}", what_, 100.0 * done / total,
                 duration_text(seconds * (total - done) / std::max(done, 1.0)));
  }

 private:
  using Clock = std::chrono::steady_clock;
  static double elapsed(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }
  std::string what_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
};

// Text states and latents of one run, from the cache or from the encoders, which are opened at the first need.
class Encoding {
 public:
  Encoding(const TrainConfig& config, const ModelParts& parts, Device& device, std::int64_t text_tokens)
      : config_(config), parts_(parts), device_(device), text_tokens_(text_tokens), cache_(config.cache_dir) {
    vae_identity_ = model_identity(parts.vae);
    t5_identity_ = model_identity(parts.t5);
    clip_identity_ = model_identity(parts.clip);
    tokenizer_identity_ = content_hash(model_identity((fs::path(parts.tokenizers) / "tokenizer").string()) +
                                       model_identity((fs::path(parts.tokenizers) / "tokenizer_2").string()));
  }

  EncodedExample operator()(const Example& example) {
    EncodedExample encoded;
    encode_text(example.caption, encoded);
    encode_picture(example, encoded);
    return encoded;
  }

  // Of the latents, after the first picture.
  Grid grid() const { return grid_; }

 private:
  void encode_text(const std::string& caption, EncodedExample& out) {
    const CacheKey key =
        text_key(caption, t5_identity_, clip_identity_, tokenizer_identity_, text_tokens_, kClipTokens);
    std::optional<Record> record = cache_.load(key);
    if (!record) {
      const TextStates states = text_encoder().encode(caption);
      const std::int64_t width = static_cast<std::int64_t>(states.text.size()) / text_tokens_;
      record =
          Record{{"text", {.shape = {text_tokens_, width}, .values = states.text}},
                 {"pooled", {.shape = {static_cast<std::int64_t>(states.pooled.size())}, .values = states.pooled}}};
      cache_.store(key, *record);
    }
    out.text = std::move(record->at("text").values);
    out.pooled = std::move(record->at("pooled").values);
  }

  void encode_picture(const Example& example, EncodedExample& out) {
    const auto [width, height] = config_.data.resolution;
    const bool mean = config_.data.latent == DataConfig::Latent::kMean;
    const std::string hash = file_hash(example.image);
    const CacheKey key = latent_key(hash, vae_identity_, width, height, mean ? "mean" : "sample");
    std::optional<Record> record = cache_.load(key);
    if (!record) {
      const Image picture = load_picture(example, config_.data.resolution);
      Autoencoder& vae = autoencoder();
      const std::vector<float> moments = vae.encode(pixels_of(picture), height, width);
      const std::int64_t rows = height / vae.shape().factor();
      const std::int64_t cols = width / vae.shape().factor();
      std::vector<float> sample(moments.size() / 2);
      if (mean) {
        latent_mean(vae.shape(), 1, moments, sample);
      } else {
        // The draw belongs to the picture, not to its place in the folder.
        std::vector<float> noise(sample.size());
        Random({.seed = std::stoull(hash.substr(0, 16), nullptr, 16), .purpose = Purpose::kLatent}).fill_normal(noise);
        latent_sample(vae.shape(), 1, moments, noise, sample);
      }
      std::vector<float> packed(sample.size());
      pack_latent(sample, vae.shape().latent_channels, rows, cols, packed);
      record = Record{
          {"latent", {.shape = {rows / 2, cols / 2, 4 * vae.shape().latent_channels}, .values = std::move(packed)}}};
      cache_.store(key, *record);
    }
    const CachedArray& latent = record->at("latent");
    grid_ = {.rows = latent.shape.at(0), .cols = latent.shape.at(1)};
    out.latent = latent.values;
  }

  TextEncoder& text_encoder() {
    if (!text_encoder_) {
      const std::string slab = ensure_slab({.checkpoint = parts_.t5,
                                            .cache_dir = config_.cache_dir,
                                            .t5 = true,
                                            .codec = Codec::kFloat,
                                            .threads = static_cast<int>(config_.threads)});
      text_encoder_ = std::make_unique<TextEncoder>(device_, parts_.tokenizers, parts_.clip, slab, text_tokens_);
    }
    return *text_encoder_;
  }

  Autoencoder& autoencoder() {
    if (!autoencoder_) autoencoder_ = std::make_unique<Autoencoder>(device_, parts_.vae);
    return *autoencoder_;
  }

  static constexpr std::int64_t kClipTokens = 77;

  const TrainConfig& config_;
  const ModelParts& parts_;
  Device& device_;
  std::int64_t text_tokens_;
  Cache cache_;
  Grid grid_;
  std::string vae_identity_, t5_identity_, clip_identity_, tokenizer_identity_;
  std::unique_ptr<TextEncoder> text_encoder_;
  std::unique_ptr<Autoencoder> autoencoder_;
};

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
  const std::vector<Example> examples = read_dataset(config.data.folder);
  TrainingSet set;
  set.text_tokens = config.data.text_length > 0 ? config.data.text_length : text_length(parts, shape.guidance);
  Encoding encode(config, parts, device, set.text_tokens);
  ProgressLog log("encoding pictures and captions");
  for (const Example& example : examples) {
    set.examples.push_back(encode(example));
    log(static_cast<double>(set.examples.size()), static_cast<double>(examples.size()));
  }
  const EncodedExample& first = set.examples.front();
  set.grid = encode.grid();
  if (set.grid.tokens() * shape.in_channels != static_cast<std::int64_t>(first.latent.size()) ||
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

}  // namespace squareq
