#include "engine/data_order.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "kernels/base/random.h"

namespace squareq {
namespace {

void shuffle(Random random, std::vector<std::uint32_t>& list) {
  for (auto i = static_cast<std::uint32_t>(list.size()); i > 1; --i) std::swap(list[i - 1], list[random.below(i)]);
}

}  // namespace

DataOrder::DataOrder(std::uint64_t seed, std::int64_t batch_size, std::vector<DrawnSample> samples)
    : seed_(seed), batch_(static_cast<std::uint64_t>(batch_size)), samples_(std::move(samples)) {
  if (samples_.empty() || batch_size < 1) throw std::logic_error("DataOrder: nothing to draw");
  for (std::uint32_t i = 0; i < samples_.size(); ++i) {
    const DrawnSample& sample = samples_[i];
    if (sample.bucket >= streams_.size()) streams_.resize(sample.bucket + 1);
    std::vector<std::uint32_t>& entries = streams_[sample.bucket].entries;
    entries.insert(entries.end(), sample.repeats, i);
    entries_ += sample.repeats;
  }
}

std::uint64_t DataOrder::batches_before(const Stream& stream, std::uint64_t epoch) const {
  return epoch * stream.entries.size() / batch_;
}

std::uint64_t DataOrder::batches_before(std::uint64_t epoch) const {
  std::uint64_t batches = 0;
  for (const Stream& stream : streams_) batches += batches_before(stream, epoch);
  return batches;
}

// The last epoch that begins at or before the batch; epochs that give no batch are passed over.
std::uint64_t DataOrder::epoch_of(std::uint64_t number) const {
  std::uint64_t low = 0;
  std::uint64_t high = 1;
  while (batches_before(high) <= number) high *= 2;
  while (high - low > 1) {
    const std::uint64_t middle = low + (high - low) / 2;
    (batches_before(middle) <= number ? low : high) = middle;
  }
  return low;
}

void DataOrder::enter(std::uint64_t epoch) {
  if (epoch == epoch_) return;
  epoch_ = epoch;
  first_ = batches_before(epoch);
  turns_.clear();
  for (std::uint32_t bucket = 0; bucket < streams_.size(); ++bucket) {
    const Stream& stream = streams_[bucket];
    turns_.insert(turns_.end(), batches_before(stream, epoch + 1) - batches_before(stream, epoch), bucket);
  }
  shuffle(
      Random({.seed = seed_, .purpose = Purpose::kShuffle, .step = static_cast<std::uint32_t>(epoch), .micro_step = 1}),
      turns_);
}

std::uint32_t DataOrder::entry(std::size_t bucket, std::uint64_t index) {
  Stream& stream = streams_[bucket];
  const std::uint64_t size = stream.entries.size();
  if (stream.epoch != index / size) {
    stream.epoch = index / size;
    stream.order.resize(size);
    std::iota(stream.order.begin(), stream.order.end(), 0U);
    shuffle(Random({.seed = seed_,
                    .purpose = Purpose::kShuffle,
                    .step = static_cast<std::uint32_t>(stream.epoch),
                    .module = static_cast<std::uint32_t>(bucket)}),
            stream.order);
  }
  return stream.entries[stream.order[index % size]];
}

Draw DataOrder::draw(std::uint32_t sample, std::uint64_t number) const {
  const DrawnSample& drawn = samples_[sample];
  RandomKey key{.seed = seed_,
                .purpose = Purpose::kCaption,
                .step = static_cast<std::uint32_t>(number >> 32U),
                .sample = static_cast<std::uint32_t>(number)};
  Random caption(key);
  key.purpose = Purpose::kFlip;
  const bool empty = caption.uniform() < drawn.caption_dropout;
  return {.sample = sample,
          .caption = empty ? drawn.captions : caption.below(drawn.captions),
          .flip = drawn.flip && Random(key).uniform() < 0.5};
}

DrawnBatch DataOrder::batch(std::uint64_t number) {
  enter(epoch_of(number));
  const std::uint64_t turn = number - first_;
  const std::uint32_t bucket = turns_[turn];
  // Of this bucket's batches, counted over the run.
  const std::uint64_t own = batches_before(streams_[bucket], epoch_) +
                            static_cast<std::uint64_t>(
                                std::count(turns_.begin(), turns_.begin() + static_cast<std::ptrdiff_t>(turn), bucket));
  DrawnBatch result{.bucket = bucket, .draws = {}};
  for (std::uint64_t place = 0; place < batch_; ++place) {
    result.draws.push_back(draw(entry(bucket, own * batch_ + place), number * batch_ + place));
  }
  return result;
}

}  // namespace squareq
