// Counter-based random numbers: the n-th number of a stream is a pure function of the stream's key, so a resumed run
// draws what an uninterrupted one would have drawn. Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011).
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace squareq {

// What the numbers are for. Values are part of the file-independent contract of a run: never renumber.
enum class Purpose : std::uint32_t {
  kLoraInit = 1,
  kNoise = 2,
  kTimestep = 3,
  kShuffle = 4,
  kLatent = 5,
  kSampleNoise = 6,
  kSynthetic = 7,
  kTest = 8,
  kRankDropout = 9,
  kNoiseOffset = 10,
  kFlip = 20,
  kCaption = 21,
  kTagOrder = 22,
};

// One block of the generator: ten rounds of Philox 4x32 on `counter` under `key`.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

// A hash of two words (MurmurHash3's finaliser after each), where a block of the generator would cost too much.
constexpr std::uint32_t hash32(std::uint32_t a, std::uint32_t b) {
  std::uint32_t h = a;
  for (int round = 0; round < 2; ++round) {
    h = (h ^ (h >> 16U)) * 0x85EBCA6BU;
    h = (h ^ (h >> 13U)) * 0xC2B2AE35U;
    h = (h ^ (h >> 16U)) + (b + 1U) * 0x9E3779B9U;
  }
  return h ^ (h >> 16U);
}

struct RandomKey {
  std::uint64_t seed = 0;
  Purpose purpose = Purpose::kTest;
  std::uint32_t step = 0;
  std::uint32_t micro_step = 0;
  std::uint32_t sample = 0;  // global sample index
  std::uint32_t module = 0;  // adapter, tensor or other sub-stream
};

class Random {
 public:
  explicit Random(const RandomKey& key);

  std::uint32_t bits();
  double uniform();                      // in (0, 1)
  double normal();                       // Box-Muller, mean 0, variance 1
  std::uint32_t below(std::uint32_t n);  // uniform in [0, n), n > 0, without modulo bias

  void fill_normal(std::span<float> out, float standard_deviation = 1.0F);
  void fill_uniform(std::span<float> out, float low, float high);

 private:
  std::array<std::uint32_t, 2> key_;
  std::array<std::uint32_t, 4> counter_;
  std::array<std::uint32_t, 4> block_{};
  unsigned left_ = 0;
  double spare_ = 0.0;
  bool has_spare_ = false;
};

}  // namespace squareq
