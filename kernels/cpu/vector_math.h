// Loops that the compiler turns into vector instructions without leave to regroup sums.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace squareq {

// exp(x) to about 2 units in the last place over the whole range (0 below, infinity above, NaN stays NaN). Without
// branches, so that loops over it vectorise; std::expf does not. Cody-Waite reduction and the minimax polynomial of
// Moshier's Cephes library (expf).
inline float fast_exp(float x) {
  constexpr float kLog2E = 1.44269504088896341F;
  constexpr float kLn2High = 0.693359375F;
  constexpr float kLn2Low = -2.12194440e-4F;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  x = x < -104.0F ? -104.0F : x;
  x = x > 89.0F ? 89.0F : x;
  const float shifted = x * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r + 1.0F;
  // 2^n as two factors, since n runs from -150 to 128.
  const std::int32_t whole = std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kRound);
  const std::int32_t half = whole >> 1;
  const auto power = [](std::int32_t e) { return std::bit_cast<float>(static_cast<std::uint32_t>(e + 127) << 23U); };
  return p * power(half) * power(whole - half);
}

// 1 / (1 + exp(-x))
inline float sigmoid(float x) { return 1.0F / (1.0F + fast_exp(-x)); }

// Sum of term(i), i in [0, n), in 16 interleaved partial sums: a fixed order that vectorises. `Sum` is float or double.
template <class Sum = float, class Term>
Sum lane_sum(std::int64_t n, Term term) {
  constexpr std::int64_t kLanes = 16;
  Sum lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += static_cast<Sum>(term(i + lane));
  }
  for (std::int64_t lane = 0; i < n; ++i, ++lane) lanes[lane] += static_cast<Sum>(term(i));
  for (std::int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

// Largest of x[0, n), n > 0.
inline float lane_max(const float* x, std::int64_t n) {
  constexpr std::int64_t kLanes = 16;
  float lanes[kLanes];
  for (float& lane : lanes) lane = x[0];
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
    }
  }
  float largest = lanes[0];
  for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  for (const float lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}

}  // namespace squareq
