

#include "apps/bench/replay.h"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "apps/bench/temporary.h"
#include "engine/encoders.h"
#include "engine/pipeline.h"
#include "engine/sampler.h"
#include "io/checkpoint.h"
#include "io/slab_build.h"
#include "kernels/base/error.h"
#include "model/latent.h"

namespace squareq::bench {
namespace {

constexpr double kReplayLimit = 1e-3;  // of latents and pictures after many steps
constexpr double kStateLimit = 1e-4;   // of one pass of a network
constexpr double kBf16Limit = 5e-2;    // of everything with bfloat16 activations

class Replay {
 public:
  explicit Replay(const ReplayOptions& options)
      : options_(options),
        io_(options.io),
        device_(open_device(options.device, options.threads, options.compute)),
        parts_(find_model_parts(options.model_dir)) {
    const Checkpoint transformer = Checkpoint::open(parts_.transformer, Model::kTransformer);
    const Checkpoint t5 = Checkpoint::open(parts_.t5, Model::kT5);
    build_slab(transformer, flux_shape(transformer), flux_file_.path(), {.codec = Codec::kFloat});
    build_slab(t5, t5_shape(t5), t5_file_.path(), {.codec = Codec::kFloat});
    slab_.emplace(flux_file_.path());
    text_tokens_ = io_.get("t5_out").shape.at(1);
    encoder_.emplace(*device_, parts_.tokenizers, parts_.clip, t5_file_.path(), text_tokens_);
    encoder_->allocate();
  }

  std::vector<Comparison> run() {
    sampling();
    if (io_.find("train_pixels") != nullptr) training();
    return std::move(list_);
  }

 private:
  std::vector<std::string> strings(const char* key) const {
    const auto found = io_.metadata().find(key);
    const nlohmann::json json =
        found == io_.metadata().end() ? nlohmann::json() : nlohmann::json::parse(found->second, nullptr, false);
    if (!json.is_array()) {
      throw FormatError({.where = io_.path() + ": metadata '" + key + "'",
                         .found = "nothing usable",
                         .expected = "a JSON list of prompts"});
    }
    return json.get<std::vector<std::string>>();
  }

  void check(const std::string& name, const std::vector<float>& value, double limit) {
    const bool bf16 = device_->ops().activation_type() == DType::BF16;
    list_.push_back(compare(name, value, io_.read_f32(name), options_.tolerance.value_or(bf16 ? kBf16Limit : limit)));
  }

  // Ids and states of all prompts; `prefix` is "" or "train_".
  std::vector<TextStates> text(const std::vector<std::string>& prompts, const std::string& prefix) {
    std::vector<TextStates> states;
    std::vector<float> t5_ids, clip_ids, t5_out, pooled;
    for (const std::string& prompt : prompts) {
      for (const std::int32_t id : encoder_->t5_ids(prompt)) t5_ids.push_back(static_cast<float>(id));
      for (const std::int32_t id : encoder_->clip_ids(prompt)) clip_ids.push_back(static_cast<float>(id));
      states.push_back(encoder_->encode(prompt));
      t5_out.insert(t5_out.end(), states.back().text.begin(), states.back().text.end());
      pooled.insert(pooled.end(), states.back().pooled.begin(), states.back().pooled.end());
    }
    list_.push_back(compare(prefix + "t5_ids", t5_ids, io_.read_f32(prefix + "t5_ids"), 0.0));
    list_.push_back(compare(prefix + "clip_ids", clip_ids, io_.read_f32(prefix + "clip_ids"), 0.0));
    check(prefix + "t5_out", t5_out, kStateLimit);
    check(prefix + "clip_pooled", pooled, kStateLimit);
    return states;
  }

  FluxEngine engine_for(std::int64_t batch) {
    return FluxEngine(*device_, *slab_, {.batch = batch, .sequences = {make_sequence(text_tokens_, grid_)}});
  }

  void sampling() {
    const std::vector<TextStates> states = text(strings("prompts"), "");
    const std::vector<std::int64_t>& image = io_.get("image").shape;
    const PictureSize picture_size{.height = image.at(2), .width = image.at(3)};
    Autoencoder vae(*device_, parts_.vae, Autoencoder::Half::kDecoder, {picture_size});
    vae.allocate();
    const std::int64_t patch = 2 * vae.shape().factor();
    grid_ = {.rows = picture_size.height / patch, .cols = picture_size.width / patch};
    std::vector<float> latents = io_.read_f32("noise");
    const std::vector<float> guidance = io_.read_f32("guidance");
    const auto steps = static_cast<std::int64_t>(io_.get("sigmas").count()) - 1;
    const std::vector<double> sigmas =
        sigma_schedule(steps, read_schedule(parts_, slab_->flux_shape().guidance), grid_.tokens());
    check("sigmas", {sigmas.begin(), sigmas.end()}, 1e-6);
    std::vector<FluxEngine::Sample> conditions;
    for (std::size_t b = 0; b < states.size(); ++b) {
      conditions.push_back({.txt = states[b].text, .y = states[b].pooled, .guidance = guidance.at(b)});
    }
    const auto recorded = [&](std::size_t step) {
      const std::string name = "latents_" + std::to_string(step);
      if (io_.find(name) != nullptr) check(name, latents, kReplayLimit);
    };
    recorded(0);
    FluxEngine engine = engine_for(static_cast<std::int64_t>(states.size()));
    euler_sample(engine, conditions, sigmas, latents, recorded);
    std::vector<float> pictures;
    const std::size_t size = latents.size() / states.size();
    for (std::size_t b = 0; b < states.size(); ++b) {
      const auto begin = latents.begin() + static_cast<std::ptrdiff_t>(b * size);
      const std::vector<float> picture = vae.decode({begin, begin + static_cast<std::ptrdiff_t>(size)}, picture_size);
      pictures.insert(pictures.end(), picture.begin(), picture.end());
    }
    check("image", pictures, kReplayLimit);
  }

  void training() {
    const std::vector<TextStates> states = text(strings("train_captions"), "train_");
    const std::vector<float> pixels = io_.read_f32("train_pixels");
    const std::vector<std::int64_t>& dims = io_.get("train_pixels").shape;
    const std::size_t size = pixels.size() / states.size();
    const PictureSize picture_size{.height = dims.at(2), .width = dims.at(3)};
    Autoencoder vae(*device_, parts_.vae, Autoencoder::Half::kEncoder, {picture_size});
    vae.allocate();
    std::vector<float> moments, latents;
    for (std::size_t b = 0; b < states.size(); ++b) {
      const auto begin = pixels.begin() + static_cast<std::ptrdiff_t>(b * size);
      const std::vector<float> m = vae.encode({begin, begin + static_cast<std::ptrdiff_t>(size)}, picture_size);
      std::vector<float> mean(m.size() / 2);
      std::vector<float> packed(mean.size());
      latent_mean(vae.shape(), 1, m, mean);
      pack_latent(mean, vae.shape().latent_channels, dims.at(2) / vae.shape().factor(),
                  dims.at(3) / vae.shape().factor(), packed);
      moments.insert(moments.end(), m.begin(), m.end());
      latents.insert(latents.end(), packed.begin(), packed.end());
    }
    check("train_moments", moments, kStateLimit);
    check("train_latents", latents, kStateLimit);
    velocity(states);
  }

  void velocity(const std::vector<TextStates>& states) {
    const std::vector<float> x0 = io_.read_f32("train_latents");
    const std::vector<float> noise = io_.read_f32("train_noise");
    const std::vector<float> sigma = io_.read_f32("train_t");
    const std::vector<float> guidance = io_.read_f32("train_guidance");
    const std::size_t size = x0.size() / states.size();
    std::vector<float> mixed(size);
    FluxEngine engine = engine_for(static_cast<std::int64_t>(states.size()));
    for (std::size_t b = 0; b < states.size(); ++b) {
      mix_noise(std::span(x0).subspan(b * size, size), std::span(noise).subspan(b * size, size), sigma.at(b), mixed);
      engine.set_sample(static_cast<std::int64_t>(b), {.img = mixed,
                                                       .txt = states[b].text,
                                                       .y = states[b].pooled,
                                                       .sigma = sigma.at(b),
                                                       .guidance = guidance.at(b)});
    }
    engine.forward();
    const std::vector<float> v = engine.prediction();
    check("train_velocity", v, kStateLimit);
    double loss = 0.0;
    for (std::size_t i = 0; i < v.size(); ++i) {
      const double d = static_cast<double>(v[i]) - (static_cast<double>(noise[i]) - static_cast<double>(x0[i]));
      loss += d * d / static_cast<double>(v.size());
    }
    check("train_loss", {static_cast<float>(loss)}, kStateLimit);
  }

  const ReplayOptions& options_;
  SafetensorsFile io_;
  std::unique_ptr<Device> device_;
  ModelParts parts_;
  TemporaryFile flux_file_{"flux.slab"};
  TemporaryFile t5_file_{"t5.slab"};
  std::optional<Slab> slab_;
  std::int64_t text_tokens_ = 0;
  std::optional<TextEncoder> encoder_;
  Grid grid_;
  std::vector<Comparison> list_;
};

}  // namespace

std::vector<Comparison> run_replay(const ReplayOptions& options) { return Replay(options).run(); }

}  // namespace squareq::bench
