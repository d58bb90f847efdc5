// Sizes that samples have: buckets of like area and different shape, and which of them a picture goes into.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/config.h"
#include "io/image.h"

namespace squareq {

struct Bucket {
  std::int64_t width = 0;  // pixels
  std::int64_t height = 0;
  bool operator==(const Bucket&) const = default;
};

// The largest ratio of a bucket's sides.
constexpr std::int64_t kMaxAspect = 4;

// Buckets of resolution R: for each width that is a multiple of `step`, the largest multiple of `step` as height with
// width x height <= R^2; those with sides of a ratio up to kMaxAspect, in order of width.
std::vector<Bucket> make_buckets(std::int64_t resolution, std::int64_t step);

// The bucket whose ratio of sides is the nearest to the picture's, in the sense of the smallest quotient of the larger
// ratio by the smaller one, computed exactly; of equally near ones the one of larger area, then the wider one.
Bucket nearest_bucket(const std::vector<Bucket>& buckets, ImageSize picture);

// The buckets in which a picture is trained, by rising resolution and each once: at every resolution the nearest one,
// or the fixed size. Without data.upscale, those that the picture does not cover are left out.
std::vector<Bucket> buckets_of(const DataConfig& data, ImageSize picture);

}  // namespace squareq
