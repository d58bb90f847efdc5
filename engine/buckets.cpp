#include "engine/buckets.h"

#include <algorithm>
#include <stdexcept>

namespace squareq {

std::vector<Bucket> make_buckets(std::int64_t resolution, std::int64_t step) {
  std::vector<Bucket> buckets;
  const std::int64_t area = resolution * resolution;
  for (std::int64_t width = step; width * step <= area; width += step) {
    const std::int64_t height = area / width / step * step;
    if (std::max(width, height) <= kMaxAspect * std::min(width, height)) buckets.push_back({width, height});
  }
  return buckets;
}

Bucket nearest_bucket(const std::vector<Bucket>& buckets, ImageSize picture) {
  if (buckets.empty()) throw std::logic_error("nearest_bucket: no buckets");
  // Quotient of the two ratios, at least 1, as a fraction.
  struct Distance {
    std::int64_t numerator, denominator;
  };
  const auto distance = [&](const Bucket& b) {
    const std::int64_t wider = b.width * picture.height;
    const std::int64_t higher = b.height * picture.width;
    return Distance{std::max(wider, higher), std::min(wider, higher)};
  };
  return *std::min_element(buckets.begin(), buckets.end(), [&](const Bucket& a, const Bucket& b) {
    const Distance of_a = distance(a);
    const Distance of_b = distance(b);
    const std::int64_t left = of_a.numerator * of_b.denominator;  // below 2^55
    const std::int64_t right = of_b.numerator * of_a.denominator;
    if (left != right) return left < right;
    if (a.width * a.height != b.width * b.height) return a.width * a.height > b.width * b.height;
    return a.width > b.width;
  });
}

std::vector<Bucket> buckets_of(const DataConfig& data, ImageSize picture) {
  std::vector<Bucket> chosen;
  const auto add = [&](const Bucket& bucket) {
    const bool covered = picture.width >= bucket.width && picture.height >= bucket.height;
    if (!covered && !data.upscale) return;
    if (std::find(chosen.begin(), chosen.end(), bucket) == chosen.end()) chosen.push_back(bucket);
  };
  if (data.fixed_size[0] > 0) {
    add({data.fixed_size[0], data.fixed_size[1]});
  } else {
    for (const std::int64_t resolution : data.resolution) {
      add(nearest_bucket(make_buckets(resolution, data.bucket_step), picture));
    }
  }
  return chosen;
}

}  // namespace squareq
