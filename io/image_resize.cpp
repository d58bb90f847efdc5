#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "io/image.h"
#include "io/large_memory.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

// Catmull-Rom spline, 1 at 0 and 0 at the other integers and from 2 on.
double catmull_rom(double x) {
  x = std::abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return ((-0.5 * x + 2.5) * x - 4) * x + 2;
  return 0;
}

// What one output sample is made of: source[first + i] * weights[i], summed.
struct Taps {
  int first = 0;
  std::vector<float> weights;
};

// `out` samples spread evenly over [begin, begin + length) of a row of `size` samples. The kernel is stretched by the
// reduction; what would fall outside of the row is left out and the rest scaled to sum to one.
std::vector<Taps> make_taps(int size, double begin, double length, int out) {
  const double step = length / out;
  const double stretch = std::max(step, 1.0);
  std::vector<Taps> all(static_cast<std::size_t>(out));
  for (int i = 0; i < out; ++i) {
    const double centre = begin + (i + 0.5) * step - 0.5;
    const int first = std::max(0, static_cast<int>(std::ceil(centre - 2 * stretch)));
    const int last = std::min(size - 1, static_cast<int>(std::floor(centre + 2 * stretch)));
    double sum = 0;
    for (int j = first; j <= last; ++j) sum += catmull_rom((j - centre) / stretch);
    Taps& taps = all[static_cast<std::size_t>(i)];
    taps.first = first;
    for (int j = first; j <= last; ++j) {
      taps.weights.push_back(static_cast<float>(catmull_rom((j - centre) / stretch) / sum));
    }
  }
  return all;
}

// One pixel of three channels, in float.
void filter_pixel(const std::uint8_t* row, const Taps& taps, float* out) {
  const std::uint8_t* source = row + 3 * static_cast<std::size_t>(taps.first);
  float red = 0;
  float green = 0;
  float blue = 0;
  for (const float weight : taps.weights) {
    red += weight * static_cast<float>(source[0]);
    green += weight * static_cast<float>(source[1]);
    blue += weight * static_cast<float>(source[2]);
    source += 3;
  }
  out[0] = red;
  out[1] = green;
  out[2] = blue;
}

// sums = weighted sum of rows of as many numbers.
void filter_rows(const float* first_row, const std::vector<float>& weights, std::vector<float>& sums) {
  std::fill(sums.begin(), sums.end(), 0.0F);
  float* __restrict to = sums.data();
  for (const float weight : weights) {
    for (std::size_t x = 0; x < sums.size(); ++x) to[x] += weight * first_row[x];
    first_row += sums.size();
  }
}

}  // namespace

Image resize_and_crop(const Image& image, int width, int height) {
  if (width < 1 || height < 1 || image.width < 1 || image.height < 1) {
    throw FormatError({"resizing a picture",
                       fmt::format("{} x {} to {} x {}", image.width, image.height, width, height),
                       "at least one pixel a side", ""});
  }
  const double scale = std::min(double{1} * image.width / width, double{1} * image.height / height);
  const double used_width = scale * width;
  const double used_height = scale * height;
  const std::vector<Taps> columns = make_taps(image.width, (image.width - used_width) / 2, used_width, width);
  const std::vector<Taps> rows = make_taps(image.height, (image.height - used_height) / 2, used_height, height);

  const std::size_t pitch = 3 * static_cast<std::size_t>(width);
  const std::size_t source_pitch = 3 * static_cast<std::size_t>(image.width);
  const int first_row = rows.front().first;
  const int end_row = rows.back().first + static_cast<int>(rows.back().weights.size());
  // Every source row that is read, at the final width.
  std::vector<float> narrow = large_vector<float>(pitch * static_cast<std::size_t>(end_row - first_row));
  float* to = narrow.data();
  for (int y = first_row; y < end_row; ++y) {
    const std::uint8_t* row = image.rgb.data() + source_pitch * static_cast<std::size_t>(y);
    for (const Taps& taps : columns) {
      filter_pixel(row, taps, to);
      to += 3;
    }
  }
  Image out{width, height, {}, {}};
  out.rgb.reserve(pitch * static_cast<std::size_t>(height));
  std::vector<float> sums(pitch);
  for (const Taps& taps : rows) {
    filter_rows(narrow.data() + pitch * static_cast<std::size_t>(taps.first - first_row), taps.weights, sums);
    for (const float sum : sums) {
      out.rgb.push_back(static_cast<std::uint8_t>(std::lround(std::clamp(sum, 0.0F, 255.0F))));
    }
  }
  return out;
}

Image mirrored(Image image) {
  const auto pixel = [](std::vector<std::uint8_t>& plane, std::size_t bytes, std::size_t index) {
    return plane.begin() + static_cast<std::ptrdiff_t>(bytes * index);
  };
  const auto mirror = [&](std::vector<std::uint8_t>& plane, std::size_t bytes) {
    const auto width = static_cast<std::size_t>(image.width);
    for (std::size_t row = 0; row < plane.size() / bytes; row += width) {
      for (std::size_t x = 0; x < width / 2; ++x) {
        std::swap_ranges(pixel(plane, bytes, row + x), pixel(plane, bytes, row + x + 1),
                         pixel(plane, bytes, row + width - 1 - x));
      }
    }
  };
  mirror(image.rgb, 3);
  mirror(image.alpha, 1);
  return image;
}

Image hconcat(const Image& left, const Image& right) {
  if (left.height != right.height) {
    throw FormatError(
        {"pictures side by side", fmt::format("heights {} and {}", left.height, right.height), "equal heights", ""});
  }
  Image out{left.width + right.width, left.height, {}, {}};
  out.rgb.reserve(left.rgb.size() + right.rgb.size());
  for (int y = 0; y < out.height; ++y) {
    for (const Image* part : {&left, &right}) {
      const std::uint8_t* row =
          part->rgb.data() + 3 * static_cast<std::size_t>(y) * static_cast<std::size_t>(part->width);
      out.rgb.insert(out.rgb.end(), row, row + 3 * part->width);
    }
  }
  return out;
}

}  // namespace squareq
