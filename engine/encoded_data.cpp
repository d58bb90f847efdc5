#include "engine/encoded_data.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <thread>

#include "engine/captions.h"
#include "engine/identity.h"
#include "engine/pipeline.h"
#include "engine/progress_log.h"
#include "engine/read_ahead.h"
#include "kernels/base/error.h"
#include "kernels/base/random.h"
#include "model/latent.h"

namespace squareq {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kClipTokens = 77;

// Rows of `cols` weights, each from right to left.
std::vector<float> mirrored_rows(std::vector<float> weights, std::int64_t cols) {
  for (auto row = weights.begin(); row != weights.end(); row += cols) std::reverse(row, row + cols);
  return weights;
}

}  // namespace

EncodedData::EncodedData(const TrainConfig& config, const ModelParts& parts, Dataset dataset, std::int64_t text_tokens)
    : config_(config),
      parts_(parts),
      dataset_(std::move(dataset)),
      text_tokens_(text_tokens),
      cache_(config.cache_dir),
      vae_identity_(model_identity(parts.vae)),
      t5_identity_(model_identity(parts.t5)),
      clip_identity_(model_identity(parts.clip)),
      tokenizer_identity_(content_hash(model_identity((fs::path(parts.tokenizers) / "tokenizer").string()) +
                                       model_identity((fs::path(parts.tokenizers) / "tokenizer_2").string()))) {
  for (std::uint32_t i = 0; i < dataset_.pictures.size(); ++i) {
    const Picture& picture = dataset_.pictures[i];
    texts_.push_back(caption_texts(folder_of(picture), picture.caption, config_.training.seed, i));
  }
}

CacheKey EncodedData::text_key_of(const std::string& text) const {
  return text_key(text, t5_identity_, clip_identity_, tokenizer_identity_, text_tokens_, kClipTokens);
}

CacheKey EncodedData::latent_key_of(const Sample& sample) const {
  const Picture& picture = dataset_.pictures[sample.picture];
  const FolderConfig& folder = folder_of(picture);
  const Bucket& bucket = dataset_.buckets[sample.bucket];
  return latent_key({.image = picture.hash,
                     .vae = vae_identity_,
                     .width = bucket.width,
                     .height = bucket.height,
                     .mode = config_.data.latent == DataConfig::Latent::kMean ? "mean" : "sample",
                     .mirrored = folder.flip,
                     .alpha = folder.alpha_mask,
                     .mask = picture.mask_hash,
                     .mask_floor = folder.mask_floor});
}

void EncodedData::encode(Device& device) {
  encode_texts(device);
  encode_pictures(device);
}

void EncodedData::encode_texts(Device& device) {
  std::set<std::string> wanted;
  for (std::size_t i = 0; i < texts_.size(); ++i) {
    wanted.insert(texts_[i].begin(), texts_[i].end());
    if (folder_of(dataset_.pictures[i]).caption_dropout > 0.0) wanted.insert("");
  }
  std::erase_if(wanted, [&](const std::string& text) { return cache_.contains(text_key_of(text)); });
  if (wanted.empty()) return;
  const std::string slab = ensure_slab({.checkpoint = parts_.t5,
                                        .cache_dir = config_.cache_dir,
                                        .t5 = true,
                                        .codec = Codec::kFloat,
                                        .threads = static_cast<int>(config_.threads)});
  TextEncoder encoder(device, parts_.tokenizers, parts_.clip, slab, text_tokens_);
  ProgressLog log("encoding captions");
  std::size_t done = 0;
  for (const std::string& text : wanted) {
    TextStates states = encoder.encode(text);
    const std::int64_t width = static_cast<std::int64_t>(states.text.size()) / text_tokens_;
    const auto pooled = static_cast<std::int64_t>(states.pooled.size());
    // In the type that they were computed in, which loses nothing.
    cache_.store(
        text_key_of(text),
        {{"text",
          {.dtype = device.ops().activation_type(), .shape = {text_tokens_, width}, .values = std::move(states.text)}},
         {"pooled", {.shape = {pooled}, .values = std::move(states.pooled)}}});
    log(static_cast<double>(++done), static_cast<double>(wanted.size()));
  }
}

void EncodedData::encode_pictures(Device& device) {
  std::set<std::string> seen;
  std::vector<Sample> missing;
  for (const Sample& sample : dataset_.samples) {
    const CacheKey key = latent_key_of(sample);
    if (seen.insert(key.text()).second && !cache_.contains(key)) missing.push_back(sample);
  }
  if (missing.empty()) return;
  Autoencoder vae(device, parts_.vae);
  PixelBudget budget;
  const std::size_t threads = config_.threads > 0 ? static_cast<std::size_t>(config_.threads)
                                                  : std::max(1U, std::thread::hardware_concurrency());
  ReadAhead<SamplePixels> pixels(missing.size(), threads, [&](std::size_t i) {
    const Picture& picture = dataset_.pictures[missing[i].picture];
    return load_sample(picture, folder_of(picture), dataset_.buckets[missing[i].bucket], budget);
  });
  ProgressLog log("encoding pictures");
  for (std::size_t i = 0; i < missing.size(); ++i) {
    const Picture& picture = dataset_.pictures[missing[i].picture];
    const Bucket& bucket = dataset_.buckets[missing[i].bucket];
    SamplePixels sample = pixels.next();
    const std::int64_t rows = bucket.height / kTokenPixels;
    const std::int64_t cols = bucket.width / kTokenPixels;
    const std::vector<std::int64_t> shape{rows, cols, 4 * vae.shape().latent_channels};
    Record record{{"latent", {.shape = shape, .values = latent_of(vae, sample.image, picture.hash, false)}}};
    if (folder_of(picture).flip) {
      sample.image = mirrored(std::move(sample.image));
      record["latent_mirrored"] = {.shape = shape, .values = latent_of(vae, sample.image, picture.hash, true)};
    }
    if (!sample.weights.empty()) record["mask"] = {.shape = {rows, cols}, .values = std::move(sample.weights)};
    cache_.store(latent_key_of(missing[i]), record);
    log(static_cast<double>(i + 1), static_cast<double>(missing.size()));
  }
}

// The draw belongs to the picture, not to its place in the folder.
std::vector<float> EncodedData::latent_of(Autoencoder& vae, const Image& image, const std::string& hash,
                                          bool mirrored) const {
  const std::vector<float> moments = vae.encode(pixels_of(image), image.height, image.width);
  std::vector<float> latent(moments.size() / 2);
  if (config_.data.latent == DataConfig::Latent::kMean) {
    latent_mean(vae.shape(), 1, moments, latent);
  } else {
    std::vector<float> noise(latent.size());
    Random({.seed = std::stoull(hash.substr(0, 16), nullptr, 16),
            .purpose = Purpose::kLatent,
            .module = mirrored ? 1U : 0U})
        .fill_normal(noise);
    latent_sample(vae.shape(), 1, moments, noise, latent);
  }
  std::vector<float> packed(latent.size());
  pack_latent(latent, vae.shape().latent_channels, image.height / vae.shape().factor(),
              image.width / vae.shape().factor(), packed);
  return packed;
}

TrainingSet EncodedData::training_set() const {
  TrainingSet set{.grids = {},
                  .text_tokens = text_tokens_,
                  .pictures = static_cast<std::int64_t>(dataset_.pictures.size()),
                  .samples = {},
                  .load = {}};
  for (const Bucket& bucket : dataset_.buckets) {
    set.grids.push_back({.rows = bucket.height / kTokenPixels, .cols = bucket.width / kTokenPixels});
  }
  for (const Sample& sample : dataset_.samples) {
    const FolderConfig& folder = folder_of(dataset_.pictures[sample.picture]);
    set.samples.push_back({.bucket = sample.bucket,
                           .repeats = static_cast<std::uint32_t>(folder.repeats),
                           .captions = static_cast<std::uint32_t>(texts_[sample.picture].size()),
                           .caption_dropout = folder.caption_dropout,
                           .flip = folder.flip});
  }
  return set;
}

Record EncodedData::load(const CacheKey& key) const {
  std::optional<Record> record = cache_.load(key);
  if (record) return std::move(*record);
  throw FileError({cache_.path_of(key), "a cache record that is gone or damaged", "the one written for this run",
                   "start the run again: it is computed anew"});
}

EncodedExample EncodedData::load(const Draw& draw) const {
  const Sample& sample = dataset_.samples.at(draw.sample);
  const std::vector<std::string>& texts = texts_[sample.picture];
  const FolderConfig& folder = folder_of(dataset_.pictures[sample.picture]);
  Record text = load(text_key_of(draw.caption < texts.size() ? texts[draw.caption] : std::string()));
  Record picture = load(latent_key_of(sample));
  EncodedExample example{.latent = std::move(picture.at(draw.flip ? "latent_mirrored" : "latent").values),
                         .text = std::move(text.at("text").values),
                         .pooled = std::move(text.at("pooled").values),
                         .token_weights = {},
                         .weight = folder.weight * (folder.regularisation ? config_.data.prior_weight : 1.0)};
  if (const auto mask = picture.find("mask"); mask != picture.end()) {
    example.token_weights = std::move(mask->second.values);
    if (draw.flip) example.token_weights = mirrored_rows(std::move(example.token_weights), mask->second.shape.at(1));
  }
  return example;
}

}  // namespace squareq
