// The order in which samples are drawn.
#pragma once

#include <cstdint>
#include <vector>

namespace squareq {

// What the order has to know about a sample: one picture in one bucket.
struct DrawnSample {
  std::uint32_t bucket = 0;
  std::uint32_t repeats = 1;   // draws an epoch
  std::uint32_t captions = 1;  // texts to choose from
  double caption_dropout = 0.0;
  bool flip = false;
};

struct Draw {
  std::uint32_t sample = 0;
  std::uint32_t caption = 0;  // one of the sample's texts; their number stands for the empty caption
  bool flip = false;
};

struct DrawnBatch {
  std::size_t bucket = 0;
  std::vector<Draw> draws;
};

// Batches of a run, each from one bucket. A batch is a function of the seed, the batch size, the samples and its number
// alone, so a resumed run continues the order at any place.
//
// With n entries (samples, each as often as it repeats, in order) in bucket b and batches of B samples:
// - The bucket's own stream is endless: entry j of it is entry order[j mod n] with the permutation `order` number
//   j div n, which Fisher and Yates' shuffle makes of 0, 1, .., n - 1 with the numbers of Random{seed, kShuffle,
//   step = j div n, module = b}: for i = n - 1 down to 1 swap entries i and below(i + 1).
// - Its batch k holds entries k B .. k B + B - 1 of that stream. In epoch e it gives its batches from floor(e n / B)
//   up to, not including, floor((e + 1) n / B): over the epochs, every sample is drawn as often as it repeats.
// - The batches of an epoch follow each other as the shuffle of the list of bucket numbers says (each as often as it
//   gives batches, in rising order) with the numbers of Random{seed, kShuffle, step = e, micro_step = 1}.
// - Draw g = number of the batch x B + place in it, counted over the whole run: the caption is empty if uniform() of
//   Random{seed, kCaption, step = g div 2^32, sample = g mod 2^32} is below caption_dropout, else number
//   below(captions) of the same stream; the picture is mirrored if uniform() of the same key with kFlip is below 0.5.
class DataOrder {
 public:
  DataOrder(std::uint64_t seed, std::int64_t batch_size, std::vector<DrawnSample> samples);

  // Batch `number`, counted from 0 over the run. Not for several threads at once: permutations are kept.
  DrawnBatch batch(std::uint64_t number);

  std::uint64_t entries() const { return entries_; }  // draws in an epoch, on average

 private:
  struct Stream {
    std::vector<std::uint32_t> entries;  // sample of each
    std::vector<std::uint32_t> order;    // permutation number `epoch`
    std::uint64_t epoch = UINT64_MAX;
  };

  std::uint64_t batches_before(const Stream& stream, std::uint64_t epoch) const;
  std::uint64_t batches_before(std::uint64_t epoch) const;
  std::uint64_t epoch_of(std::uint64_t number) const;
  void enter(std::uint64_t epoch);
  std::uint32_t entry(std::size_t bucket, std::uint64_t index);
  Draw draw(std::uint32_t sample, std::uint64_t number) const;

  std::uint64_t seed_;
  std::uint64_t batch_;
  std::vector<DrawnSample> samples_;
  std::vector<Stream> streams_;  // one a bucket
  std::uint64_t entries_ = 0;
  std::uint64_t epoch_ = UINT64_MAX;  // of what follows
  std::uint64_t first_ = 0;           // number of the epoch's first batch
  std::vector<std::uint32_t> turns_;  // bucket of each batch of the epoch
};

}  // namespace squareq
