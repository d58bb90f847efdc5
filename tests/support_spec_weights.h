// Deterministic weights that need no random library: entry k of the tensor called `name` depends on the two alone.
// Reference values computed from such weights by the original model code stand in the tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace squareq::test {

// Uniform in [-0.5, 0.5): FNV-1a of the name, then splitmix64.
inline double spec_uniform(std::string_view name, std::uint64_t k) {
  std::uint64_t seed = 14695981039346656037ULL;
  for (const char c : name) seed = (seed ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  std::uint64_t z = seed + (k + 1) * 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27U)) * 0x94D049BB133111EBULL;
  z ^= z >> 31U;
  return static_cast<double>(z >> 40U) / 0x1p24 - 0.5;
}

// `count` values with standard deviation a.
inline std::vector<float> spec_values(const std::string& name, std::int64_t count, double a) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t k = 0; k < values.size(); ++k) {
    values[k] = static_cast<float>(spec_uniform(name, k) * 2.0 * std::sqrt(3.0) * a);
  }
  return values;
}

// Gains of norms: 1 + 0.2 u.
inline std::vector<float> spec_gains(const std::string& name, std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t k = 0; k < values.size(); ++k) values[k] = static_cast<float>(1.0 + 0.2 * spec_uniform(name, k));
  return values;
}

}  // namespace squareq::test
