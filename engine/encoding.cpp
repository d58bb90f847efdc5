#include "engine/encoding.h"

#include <algorithm>

#include "engine/progress_log.h"

namespace squareq {
namespace {

const char* const kTexts = "text encoding";
const char* const kPictures = "picture encoding";

}  // namespace

Encoding::Encoding(Device& device, std::vector<const EncodedData*> data, const CachedTexts& texts,
                   std::set<std::string> more_texts, std::optional<DType> activations)
    : device_(device), data_(std::move(data)), texts_(texts) {
  std::vector<PictureSize> sizes;
  for (const EncodedData* set : data_) {
    more_texts.merge(set->texts());
    for (const Sample& sample : missing_pictures_.emplace_back(set->missing_pictures())) {
      const PictureSize size = set->size_of(sample);
      if (std::ranges::find(sizes, size) == sizes.end()) sizes.push_back(size);
    }
  }
  missing_texts_ = texts_.missing(std::move(more_texts));
  if (!missing_texts_.empty()) text_encoder_ = texts_.open_encoder(device, activations);
  if (!sizes.empty()) picture_encoder_ = data_.front()->open_encoder(device, sizes, activations);
}

std::vector<EncoderSizes> Encoding::sizes(std::optional<std::size_t> scratch) {
  std::vector<EncoderSizes> list;
  if (text_encoder_) {
    list.push_back({.phase = {.name = kTexts, .smaller = "lower data.text_length"},
                    .weights = text_encoder_->clip_weight_bytes(),
                    .slab = &text_encoder_->t5_slab(),
                    .activations = text_encoder_->activation_bytes(),
                    .scratch = scratch ? *scratch : text_encoder_->scratch_bytes()});
  }
  if (picture_encoder_) {
    list.push_back({.phase = {.name = kPictures, .smaller = "lower data.resolution"},
                    .weights = picture_encoder_->weight_bytes(),
                    .activations = picture_encoder_->activation_bytes(),
                    .scratch = scratch ? *scratch : measure_arena(device_, picture_encoder_->work()).scratch});
  }
  return list;
}

void Encoding::run(const std::map<std::string, Residency>& residency) {
  if (text_encoder_) {
    const auto planned = residency.find(kTexts);
    text_encoder_->allocate(planned == residency.end() ? Residency{} : planned->second);
    texts_.encode(*text_encoder_, missing_texts_);
    log_memory(kTexts, device_);
    text_encoder_.reset();
  }
  if (picture_encoder_) {
    picture_encoder_->allocate();
    for (std::size_t i = 0; i < data_.size(); ++i) {
      data_[i]->encode_pictures(*picture_encoder_, missing_pictures_[i]);
    }
    log_memory(kPictures, device_);
    picture_encoder_.reset();
  }
}

}  // namespace squareq
