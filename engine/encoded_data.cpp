#include "engine/encoded_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "engine/captions.h"
#include "engine/identity.h"
#include "engine/progress_log.h"
#include "engine/read_ahead.h"
#include "kernels/base/random.h"
#include "model/latent.h"

namespace squareq {
namespace {

// Rows of `cols` weights, each from right to left.
std::vector<float> mirrored_rows(std::vector<float> weights, std::int64_t cols) {
  for (auto row = weights.begin(); row != weights.end(); row += cols) std::reverse(row, row + cols);
  return weights;
}

// Writes records while the next one is computed: making a file durable takes milliseconds.
class BackgroundStore {
 public:
  explicit BackgroundStore(const Cache& cache) : cache_(cache) {}

  void operator()(CacheKey key, Record record) {
    finish();
    pending_ = std::async(std::launch::async,
                          [this, key = std::move(key), record = std::move(record)] { cache_.store(key, record); });
  }
  // Waits for the last one; its error is thrown here.
  void finish() {
    if (pending_.valid()) pending_.get();
  }

 private:
  const Cache& cache_;
  std::future<void> pending_;
};

}  // namespace

EncodedData::EncodedData(const TrainConfig& config, const ModelParts& parts, Dataset dataset, std::int64_t text_tokens)
    : config_(config),
      parts_(parts),
      dataset_(std::move(dataset)),
      text_tokens_(text_tokens),
      text_states_(config, parts, text_tokens),
      cache_(config.cache_dir),
      vae_identity_(model_identity(parts.vae)) {
  for (std::uint32_t i = 0; i < dataset_.pictures.size(); ++i) {
    const Picture& picture = dataset_.pictures[i];
    texts_.push_back(caption_texts(folder_of(picture), picture.caption, config_.training.seed, i));
  }
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

double EncodedData::weight_of(const FolderConfig& folder) const {
  return folder.weight * (folder.regularisation ? config_.data.prior_weight : 1.0);
}

std::set<std::string> EncodedData::texts() const {
  std::set<std::string> wanted;
  for (std::size_t i = 0; i < texts_.size(); ++i) {
    wanted.insert(texts_[i].begin(), texts_[i].end());
    if (folder_of(dataset_.pictures[i]).caption_dropout > 0.0) wanted.insert("");
  }
  return wanted;
}

std::vector<Sample> EncodedData::missing_pictures() const {
  std::set<std::string> seen;
  std::vector<Sample> missing;
  for (const Sample& sample : dataset_.samples) {
    const CacheKey key = latent_key_of(sample);
    if (seen.insert(key.text()).second && !cache_.contains(key)) missing.push_back(sample);
  }
  return missing;
}

PictureSize EncodedData::size_of(const Sample& sample) const {
  const Bucket& bucket = dataset_.buckets[sample.bucket];
  return {.height = bucket.height, .width = bucket.width};
}

std::unique_ptr<Autoencoder> EncodedData::open_encoder(Device& device, const std::vector<PictureSize>& sizes,
                                                       std::optional<DType> activations) const {
  return std::make_unique<Autoencoder>(device, parts_.vae, Autoencoder::Half::kEncoder, sizes,
                                       Autoencoder::kLargestTile, activations);
}

void EncodedData::encode_pictures(Autoencoder& vae, const std::vector<Sample>& missing) const {
  PixelBudget budget;
  const std::size_t threads = config_.threads > 0 ? static_cast<std::size_t>(config_.threads)
                                                  : std::max(1U, std::thread::hardware_concurrency());
  ReadAhead<SamplePixels> pixels(missing.size(), threads, [&](std::size_t i) {
    const Picture& picture = dataset_.pictures[missing[i].picture];
    return load_sample(picture, folder_of(picture), dataset_.buckets[missing[i].bucket], budget);
  });
  ProgressLog log("encoding pictures");
  BackgroundStore store(cache_);
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
    store(latent_key_of(missing[i]), std::move(record));
    log(static_cast<double>(i + 1), static_cast<double>(missing.size()));
  }
  store.finish();
}

// The draw belongs to the picture, not to its place in the folder.
std::vector<float> EncodedData::latent_of(Autoencoder& vae, const Image& image, const std::string& hash,
                                          bool mirrored) const {
  const std::vector<float> moments = vae.encode(pixels_of(image), {.height = image.height, .width = image.width});
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
                  .load = {},
                  .identity = {}};
  Sha256 identity;
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
    identity.add(latent_key_of(sample).text());
    for (const std::string& text : texts_[sample.picture]) identity.add(text_states_.key(text).text());
    identity.add(fmt::format("bucket {}, repeats {}, weight {}, dropout {}\n", sample.bucket, folder.repeats,
                             weight_of(folder), folder.caption_dropout));
  }
  set.identity = identity.hex();
  return set;
}

EncodedExample EncodedData::load(const Draw& draw) const {
  const Sample& sample = dataset_.samples.at(draw.sample);
  const std::vector<std::string>& texts = texts_[sample.picture];
  const FolderConfig& folder = folder_of(dataset_.pictures[sample.picture]);
  TextStates text = text_states_.load(draw.caption < texts.size() ? texts[draw.caption] : std::string());
  Record picture = cache_.require(latent_key_of(sample));
  EncodedExample example{.latent = std::move(picture.at(draw.flip ? "latent_mirrored" : "latent").values),
                         .text = std::move(text.text),
                         .pooled = std::move(text.pooled),
                         .token_weights = {},
                         .weight = weight_of(folder)};
  if (const auto mask = picture.find("mask"); mask != picture.end()) {
    example.token_weights = std::move(mask->second.values);
    if (draw.flip) example.token_weights = mirrored_rows(std::move(example.token_weights), mask->second.shape.at(1));
  }
  return example;
}

}  // namespace squareq
