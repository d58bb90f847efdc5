// Pictures: 8-bit RGB in, PNG out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace squareq {

// Rows from the top, three bytes (red, green, blue; sRGB) a pixel, no padding: rgb.size() == 3 * width * height.
struct Image {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> rgb;
  std::vector<std::uint8_t> alpha;  // one byte a pixel where it was asked for and the file has it, else empty
};

struct ImageSize {
  int width = 0;
  int height = 0;
};

// What becomes of transparency.
enum class Transparency : std::uint8_t {
  kOnWhite,  // the picture is composited on white
  kKept,     // colours as stored, and Image::alpha
};

// Keyword and value of a PNG text chunk. The keyword is 1 to 79 printable ASCII characters, the value is UTF-8.
using PngText = std::vector<std::pair<std::string, std::string>>;

// Reads PNG, JPEG, WebP or BMP. EXIF orientation is applied, so the picture stands as it was meant to be seen; grey
// becomes three equal channels; 16-bit samples are rounded to 8 bits.
// Throws FileError when the file cannot be read, FormatError (naming it) when it is no picture of these formats, is
// damaged, animated, a CMYK JPEG, or larger than 16384 pixels a side or 200 million pixels.
Image read_image(const std::string& path, Transparency transparency = Transparency::kOnWhite);

// The same from memory; `name` stands for the file in messages.
Image decode_image(std::span<const std::byte> data, const std::string& name,
                   Transparency transparency = Transparency::kOnWhite);

// Size of the picture as read_image gives it, without decoding it. Throws as decode_image does where the file is not
// whole; damage inside of compressed data is not seen.
ImageSize image_size(std::span<const std::byte> data, const std::string& name);

// Writes a PNG atomically, its text in tEXt chunks (iTXt where a value is not ASCII). Throws FileError when it cannot.
void write_png(const std::string& path, const Image& image, const PngText& text = {});

// Scales to cover width x height, keeping proportions, and cuts the middle out. Filtered with a Catmull-Rom kernel as
// wide as the reduction, in float, so shrinking does not alias. The result has no alpha.
Image resize_and_crop(const Image& image, int width, int height);

// Left and right exchanged.
Image mirrored(Image image);

// Both pictures in one, left beside right. Throws FormatError unless their heights are equal.
Image hconcat(const Image& left, const Image& right);

}  // namespace squareq
