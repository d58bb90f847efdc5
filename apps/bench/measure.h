// What every measurement needs: random numbers, a clock, a median.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "kernels/base/random.h"
#include "kernels/device.h"

namespace squareq::bench {

// Of work that is done: a device may lag behind.
double seconds_of(const auto& work, Device* device = nullptr) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  if (device != nullptr) device->synchronize();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Of `repeats` runs after one that warms up.
double median_seconds(int repeats, const auto& work, Device* device = nullptr) {
  work();
  std::vector<double> times(static_cast<std::size_t>(repeats));
  for (double& time : times) time = seconds_of(work, device);
  return median(times);
}

// Standard normal.
inline std::vector<float> random_floats(std::int64_t count, std::uint32_t stream) {
  std::vector<float> values(static_cast<std::size_t>(count));
  Random({.purpose = Purpose::kTest, .module = stream}).fill_normal(values);
  return values;
}

}  // namespace squareq::bench
