#include "io/image.h"

#include <fmt/format.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <limits>
#include <memory>

#include "io/image_format.h"
#include "io/mapped_file.h"
#include "kernels/base/error.h"

#define STB_IMAGE_IMPLEMENTATION
#define STBI_NO_STDIO
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_ONLY_BMP
#define STBI_FAILURE_USERMSG
#define STBI_MAX_DIMENSIONS 16384
// Zeroed, so that a damaged JPEG whose scans lack a table or a component gives the same picture every time.
#define STBI_MALLOC(size) std::calloc(1, size)
#define STBI_REALLOC(memory, size) std::realloc(memory, size)
#define STBI_FREE(memory) std::free(memory)
#include <stb_image.h>

namespace squareq {
namespace {

static_assert(STBI_MAX_DIMENSIONS == image_format::kMaxSide);

struct StbFree {
  void operator()(void* memory) const noexcept { stbi_image_free(memory); }
};

[[noreturn]] void undecodable(const std::string& name) {
  throw FormatError({name, fmt::format("a picture that cannot be decoded ({})", stbi_failure_reason()),
                     "an undamaged PNG, JPEG or BMP", "open it in an image editor and save it as PNG"});
}

// Composites samples over white and rounds them to 8 bits, in exact integers with one rounding. `channels` is grey,
// grey + alpha, RGB or RGBA.
template <typename Sample>
void to_rgb(const Sample* samples, int channels, std::vector<std::uint8_t>& rgb) {
  constexpr std::uint64_t kMax = std::numeric_limits<Sample>::max();
  const auto step = static_cast<std::size_t>(channels);
  const bool has_alpha = channels == 2 || channels == 4;
  const std::size_t green = channels >= 3 ? 1 : 0;
  const std::size_t blue = channels >= 3 ? 2 : 0;
  for (std::size_t i = 0; i < rgb.size(); i += 3, samples += step) {
    const std::uint64_t alpha = has_alpha ? samples[step - 1] : kMax;
    const auto over_white = [&](std::size_t channel) {
      const std::uint64_t sum = samples[channel] * alpha + kMax * (kMax - alpha);
      return static_cast<std::uint8_t>((sum * 255 + kMax * kMax / 2) / (kMax * kMax));
    };
    rgb[i] = over_white(0);
    rgb[i + 1] = over_white(green);
    rgb[i + 2] = over_white(blue);
  }
}

// Turns the picture as EXIF orientation 2 to 8 asks for: mirrored along an axis of the stored picture, and from 5 on
// with rows and columns exchanged.
Image oriented(Image image, int orientation) {
  if (orientation == 1) return image;
  const bool exchanged = orientation >= 5;
  const bool flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Image turned{exchanged ? image.height : image.width, exchanged ? image.width : image.height, {}};
  turned.rgb.reserve(image.rgb.size());
  for (int y = 0; y < turned.height; ++y) {
    for (int x = 0; x < turned.width; ++x) {
      const int from_x = exchanged ? y : x;
      const int from_y = exchanged ? x : y;
      const auto column = static_cast<std::size_t>(flip_x ? image.width - 1 - from_x : from_x);
      const auto row = static_cast<std::size_t>(flip_y ? image.height - 1 - from_y : from_y);
      const std::uint8_t* pixel = image.rgb.data() + 3 * (row * static_cast<std::size_t>(image.width) + column);
      turned.rgb.insert(turned.rgb.end(), pixel, pixel + 3);
    }
  }
  return turned;
}

}  // namespace

Image decode_image(std::span<const std::byte> data, const std::string& name) {
  if (data.size() > INT_MAX) throw FormatError({name, fmt::format("{} bytes", data.size()), "less than 2 GiB", ""});
  const int orientation = image_format::check_and_orientation(data, name);
  const auto* bytes = reinterpret_cast<const stbi_uc*>(data.data());
  const int size = static_cast<int>(data.size());
  int width = 0;
  int height = 0;
  int channels = 0;
  if (stbi_info_from_memory(bytes, size, &width, &height, &channels) == 0) undecodable(name);
  const std::int64_t pixels = std::int64_t{width} * height;
  if (width < 1 || height < 1 || std::max(width, height) > image_format::kMaxSide ||
      pixels > image_format::kMaxPixels) {
    throw FormatError({name, fmt::format("a picture of {} x {} pixels", width, height),
                       fmt::format("at most {} pixels a side and {} million in all", image_format::kMaxSide,
                                   image_format::kMaxPixels / 1'000'000),
                       "make it smaller"});
  }
  Image image;
  if (stbi_is_16_bit_from_memory(bytes, size) != 0) {
    const std::unique_ptr<stbi_us[], StbFree> samples(
        stbi_load_16_from_memory(bytes, size, &image.width, &image.height, &channels, 0));
    if (!samples) undecodable(name);
    image.rgb.resize(3 * static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height));
    to_rgb(samples.get(), channels, image.rgb);
  } else {
    const std::unique_ptr<stbi_uc[], StbFree> samples(
        stbi_load_from_memory(bytes, size, &image.width, &image.height, &channels, 0));
    if (!samples) undecodable(name);
    image.rgb.resize(3 * static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height));
    to_rgb(samples.get(), channels, image.rgb);
  }
  return oriented(std::move(image), orientation);
}

Image read_image(const std::string& path) {
  const MappedFile file(path);
  return decode_image(file.bytes(), path);
}

}  // namespace squareq
