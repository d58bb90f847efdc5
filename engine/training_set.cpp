#include "engine/training_set.h"

namespace squareq {

std::vector<Sequence> sequences_of(const TrainingSet& set) {
  std::vector<Sequence> sequences;
  for (const Grid& grid : set.grids) sequences.push_back(make_sequence(set.text_tokens, grid));
  return sequences;
}

BatchSource::BatchSource(const TrainingSet& set, std::uint64_t seed, std::int64_t batch_size)
    : set_(set), order_(seed, batch_size, set.samples) {}

LoadedBatch BatchSource::load(const DrawnBatch& drawn) const {
  LoadedBatch batch{.bucket = drawn.bucket, .examples = {}};
  for (const Draw& draw : drawn.draws) batch.examples.push_back(set_.load(draw));
  return batch;
}

LoadedBatch BatchSource::get(std::uint64_t number) {
  const bool ready = next_.valid() && next_number_ == number;
  LoadedBatch batch = ready ? next_.get() : load(order_.batch(number));
  next_number_ = number + 1;
  next_ = std::async(std::launch::async, [this, drawn = order_.batch(next_number_)] { return load(drawn); });
  return batch;
}

}  // namespace squareq
