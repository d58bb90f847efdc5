#include "engine/cached_texts.h"

#include <filesystem>

#include "engine/identity.h"
#include "engine/pipeline.h"
#include "engine/progress_log.h"

namespace squareq {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kClipTokens = 77;

}  // namespace

CachedTexts::CachedTexts(const TrainConfig& config, const ModelParts& parts, std::int64_t text_tokens)
    : parts_(parts),
      cache_dir_(config.cache_dir),
      threads_(config.threads),
      text_tokens_(text_tokens),
      cache_(config.cache_dir),
      t5_identity_(model_identity(parts.t5)),
      clip_identity_(model_identity(parts.clip)),
      tokenizer_identity_(content_hash(model_identity((fs::path(parts.tokenizers) / "tokenizer").string()) +
                                       model_identity((fs::path(parts.tokenizers) / "tokenizer_2").string()))) {}

CacheKey CachedTexts::key(const std::string& text) const {
  return text_key(text, t5_identity_, clip_identity_, tokenizer_identity_, text_tokens_, kClipTokens);
}

std::set<std::string> CachedTexts::missing(std::set<std::string> texts) const {
  std::erase_if(texts, [&](const std::string& text) { return cache_.contains(key(text)); });
  return texts;
}

std::unique_ptr<TextEncoder> CachedTexts::open_encoder(Device& device, std::optional<DType> activations) const {
  const std::string slab = ensure_slab({.checkpoint = parts_.t5,
                                        .cache_dir = cache_dir_,
                                        .t5 = true,
                                        .codec = Codec::kFloat,
                                        .threads = static_cast<int>(threads_)});
  return std::make_unique<TextEncoder>(device, parts_.tokenizers, parts_.clip, slab, text_tokens_, activations);
}

void CachedTexts::encode(TextEncoder& encoder, const std::set<std::string>& texts) const {
  ProgressLog log("encoding texts");
  std::size_t done = 0;
  for (const std::string& text : texts) {
    TextStates states = encoder.encode(text);
    const std::int64_t width = static_cast<std::int64_t>(states.text.size()) / text_tokens_;
    const auto pooled = static_cast<std::int64_t>(states.pooled.size());
    // In the type that they were computed in, which loses nothing.
    cache_.store(
        key(text),
        {{"text", {.dtype = encoder.activations(), .shape = {text_tokens_, width}, .values = std::move(states.text)}},
         {"pooled", {.shape = {pooled}, .values = std::move(states.pooled)}}});
    log(static_cast<double>(++done), static_cast<double>(texts.size()));
  }
}

TextStates CachedTexts::load(const std::string& text) const {
  Record record = cache_.require(key(text));
  return {.text = std::move(record.at("text").values), .pooled = std::move(record.at("pooled").values)};
}

}  // namespace squareq
