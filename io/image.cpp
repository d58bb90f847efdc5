#include "io/image.h"

#include <fmt/format.h>

#include <climits>
#include <cstdlib>
#include <limits>
#include <memory>

#include "io/image_codecs.h"
#include "io/image_format.h"
#include "io/large_memory.h"
#include "io/mapped_file.h"
#include "kernels/base/error.h"

#define STB_IMAGE_IMPLEMENTATION
#define STBI_NO_STDIO
#define STBI_ONLY_PNG
#define STBI_ONLY_BMP
#define STBI_FAILURE_USERMSG
#define STBI_MAX_DIMENSIONS 16384
#include <stb_image.h>

namespace squareq {
namespace {

using image_format::Format;
using image_format::Header;

static_assert(STBI_MAX_DIMENSIONS == image_format::kMaxSide);

struct StbFree {
  void operator()(void* memory) const noexcept { stbi_image_free(memory); }
};

// Rounds samples to 8 bits in exact integers, with one rounding, composited over white unless transparency is kept.
// `channels` is grey, grey + alpha, RGB or RGBA.
template <typename Sample>
void to_rgb(const Sample* samples, int channels, Transparency transparency, Image& image) {
  constexpr std::uint64_t kMax = std::numeric_limits<Sample>::max();
  const auto step = static_cast<std::size_t>(channels);
  const bool has_alpha = channels == 2 || channels == 4;
  const bool keeps = has_alpha && transparency == Transparency::kKept;
  const std::size_t green = channels >= 3 ? 1 : 0;
  const std::size_t blue = channels >= 3 ? 2 : 0;
  const std::size_t count = static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height);
  image.rgb = large_vector<std::uint8_t>(3 * count);
  if (keeps) image.alpha.resize(count);
  for (std::size_t i = 0; i < count; ++i, samples += step) {
    const std::uint64_t alpha = has_alpha && !keeps ? samples[step - 1] : kMax;
    const auto over_white = [&](std::size_t channel) {
      const std::uint64_t sum = samples[channel] * alpha + kMax * (kMax - alpha);
      return static_cast<std::uint8_t>((sum * 255 + kMax * kMax / 2) / (kMax * kMax));
    };
    image.rgb[3 * i] = over_white(0);
    image.rgb[3 * i + 1] = over_white(green);
    image.rgb[3 * i + 2] = over_white(blue);
    if (keeps) image.alpha[i] = over_white(step - 1);
  }
}

// Pixels of `bytes` bytes each, turned as EXIF orientation 2 to 8 asks for: mirrored along an axis of the stored
// picture, and from 5 on with rows and columns exchanged.
std::vector<std::uint8_t> turned(const std::vector<std::uint8_t>& pixels, std::size_t bytes, const Header& stored) {
  const int orientation = stored.orientation;
  const bool exchanged = orientation >= 5;
  const bool flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  std::vector<std::uint8_t> result;
  result.reserve(pixels.size());
  for (int y = 0; y < (exchanged ? stored.width : stored.height); ++y) {
    for (int x = 0; x < (exchanged ? stored.height : stored.width); ++x) {
      const int from_x = exchanged ? y : x;
      const int from_y = exchanged ? x : y;
      const auto column = static_cast<std::size_t>(flip_x ? stored.width - 1 - from_x : from_x);
      const auto row = static_cast<std::size_t>(flip_y ? stored.height - 1 - from_y : from_y);
      const auto* pixel = pixels.data() + bytes * (row * static_cast<std::size_t>(stored.width) + column);
      result.insert(result.end(), pixel, pixel + bytes);
    }
  }
  return result;
}

ImageSize upright_size(const Header& header) {
  if (header.orientation >= 5) return {header.height, header.width};
  return {header.width, header.height};
}

Header checked(std::span<const std::byte> data, const std::string& name) {
  if (data.size() > INT_MAX) throw FormatError({name, fmt::format("{} bytes", data.size()), "less than 2 GiB", ""});
  return image_format::check(data, name);
}

// PNG and BMP.
void decode_with_stb(std::span<const std::byte> data, const std::string& name, Transparency transparency,
                     Image& image) {
  const auto* bytes = reinterpret_cast<const stbi_uc*>(data.data());
  const int size = static_cast<int>(data.size());
  int channels = 0;
  const auto convert = [&]<class Sample>(Sample* loaded) {
    const std::unique_ptr<Sample[], StbFree> samples(loaded);
    if (!samples) image_codecs::undecodable(name, stbi_failure_reason());
    to_rgb(samples.get(), channels, transparency, image);
  };
  if (stbi_is_16_bit_from_memory(bytes, size) != 0) {
    convert(stbi_load_16_from_memory(bytes, size, &image.width, &image.height, &channels, 0));
  } else {
    convert(stbi_load_from_memory(bytes, size, &image.width, &image.height, &channels, 0));
  }
}

}  // namespace

void image_codecs::undecodable(const std::string& name, const std::string& reason) {
  throw FormatError({name, fmt::format("a picture that cannot be decoded ({})", reason),
                     "an undamaged PNG, JPEG, WebP or BMP", "open it in an image editor and save it as PNG"});
}

Image decode_image(std::span<const std::byte> data, const std::string& name, Transparency transparency) {
  const Header header = checked(data, name);
  Image image{.width = header.width, .height = header.height, .rgb = {}, .alpha = {}};
  if (header.format == Format::kJpeg || header.format == Format::kWebp) {
    const auto decode = header.format == Format::kJpeg ? image_codecs::decode_jpeg : image_codecs::decode_webp;
    image_codecs::Pixels pixels = decode(data, header, name);
    if (pixels.channels == 3) {
      image.rgb = std::move(pixels.samples);
    } else {
      to_rgb(pixels.samples.data(), pixels.channels, transparency, image);
    }
  } else {
    decode_with_stb(data, name, transparency, image);
  }
  if (header.orientation == 1) return image;
  image.rgb = turned(image.rgb, 3, header);
  if (!image.alpha.empty()) image.alpha = turned(image.alpha, 1, header);
  const ImageSize size = upright_size(header);
  image.width = size.width;
  image.height = size.height;
  return image;
}

Image read_image(const std::string& path, Transparency transparency) {
  const MappedFile file(path);
  Image image = decode_image(file.bytes(), path, transparency);
  file.check_whole();
  return image;
}

ImageSize image_size(std::span<const std::byte> data, const std::string& name) {
  return upright_size(checked(data, name));
}

}  // namespace squareq
