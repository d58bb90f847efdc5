// What training reads: samples encoded for the transformer, and the batches that they are drawn in.
#pragma once

#include <cstdint>
#include <functional>
#include <future>
#include <optional>
#include <string>
#include <vector>

#include "engine/data_order.h"
#include "model/sequence.h"

namespace squareq {

// One picture with its caption, ready for the transformer.
struct EncodedExample {
  std::vector<float> latent;         // packed [tokens, 4 z], normalised
  std::vector<float> text;           // T5 states [text tokens, width]
  std::vector<float> pooled;         // CLIP state
  std::vector<float> token_weights;  // of the loss [tokens], with mean 1; empty: 1 everywhere
  double weight = 1.0;               // of the sample's loss
};

struct TrainingSet {
  std::vector<Grid> grids;  // of the latents of each bucket
  std::int64_t text_tokens = 0;
  std::int64_t pictures = 0;
  std::vector<DrawnSample> samples;
  std::function<EncodedExample(const Draw&)> load;  // may be called by several threads at once
  std::string identity;                             // hash of all that decides what `load` gives and how it is drawn
};

// One for every bucket, in order.
std::vector<Sequence> sequences_of(const TrainingSet& set);

struct LoadedBatch {
  std::size_t bucket = 0;
  std::vector<EncodedExample> examples;
};

// The batches of a run. While one is used, the next one is read by a thread of its own.
class BatchSource {
 public:
  // `set` outlives the source.
  BatchSource(const TrainingSet& set, std::uint64_t seed, std::int64_t batch_size);

  // Batch `number` of DataOrder.
  LoadedBatch get(std::uint64_t number);

 private:
  LoadedBatch load(const DrawnBatch& drawn) const;

  const TrainingSet& set_;
  DataOrder order_;
  std::uint64_t next_number_ = 0;
  std::future<LoadedBatch> next_;  // last, so that it is waited for before the rest goes
};

}  // namespace squareq
