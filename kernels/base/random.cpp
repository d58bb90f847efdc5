#include "kernels/base/random.h"

#include <cmath>
#include <numbers>

namespace squareq {
namespace {

std::uint64_t mix(std::uint64_t z) {  // the splitmix64 finaliser
  z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27U)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31U);
}

}  // namespace

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> c, std::array<std::uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = 0xD2511F53ULL * c[0];
    const std::uint64_t p1 = 0xCD9E8D57ULL * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32U) ^ c[1] ^ k[0], static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32U) ^ c[3] ^ k[1], static_cast<std::uint32_t>(p0)};
    k[0] += 0x9E3779B9U;
    k[1] += 0xBB67AE85U;
  }
  return c;
}

// The 64-bit Philox key holds seed, purpose and module; the 128-bit counter holds step, micro-step and sample in its
// upper three words and the position in the stream in the lowest.
Random::Random(const RandomKey& key) : counter_{0, key.step, key.micro_step, key.sample} {
  const std::uint64_t tag = (static_cast<std::uint64_t>(key.purpose) << 32U) | key.module;
  const std::uint64_t mixed = mix(key.seed ^ mix(tag + 0x9E3779B97F4A7C15ULL));
  key_ = {static_cast<std::uint32_t>(mixed), static_cast<std::uint32_t>(mixed >> 32U)};
}

std::uint32_t Random::bits() {
  if (left_ == 0) {
    block_ = philox4x32(counter_, key_);
    ++counter_[0];
    left_ = 4;
  }
  return block_[4 - left_--];
}

double Random::uniform() { return (static_cast<double>(bits()) + 0.5) * 0x1p-32; }

double Random::normal() {
  if (has_spare_) {
    has_spare_ = false;
    return spare_;
  }
  const double radius = std::sqrt(-2.0 * std::log(uniform()));
  const double angle = 2.0 * std::numbers::pi * uniform();
  spare_ = radius * std::sin(angle);
  has_spare_ = true;
  return radius * std::cos(angle);
}

std::uint32_t Random::below(std::uint32_t n) {
  const std::uint32_t limit = UINT32_MAX - UINT32_MAX % n;  // a multiple of n
  std::uint32_t value = bits();
  while (value >= limit) value = bits();
  return value % n;
}

void Random::fill_normal(std::span<float> out, float standard_deviation) {
  for (float& x : out) x = static_cast<float>(normal()) * standard_deviation;
}

void Random::fill_uniform(std::span<float> out, float low, float high) {
  for (float& x : out) x = low + (high - low) * static_cast<float>(uniform());
}

}  // namespace squareq
