#include "engine/contact_sheet.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <string_view>
#include <utility>

#include "kernels/base/error.h"

namespace squareq {
namespace {

constexpr int kGap = 4;
constexpr int kGlyphWidth = 5;
constexpr int kGlyphHeight = 7;
constexpr int kLargestSide = 32768;
constexpr std::uint8_t kBackground = 32;
constexpr std::uint8_t kInk = 230;

// Rows of five dots, the leftmost in the highest bit.
using Glyph = std::array<std::uint8_t, kGlyphHeight>;
constexpr std::pair<char, Glyph> kGlyphs[] = {
    {'0', {14, 17, 19, 21, 25, 17, 14}}, {'1', {4, 12, 4, 4, 4, 4, 14}},      {'2', {14, 17, 1, 2, 4, 8, 31}},
    {'3', {31, 2, 4, 2, 1, 17, 14}},     {'4', {2, 6, 10, 18, 31, 2, 2}},     {'5', {31, 16, 30, 1, 1, 17, 14}},
    {'6', {6, 8, 16, 30, 17, 17, 14}},   {'7', {31, 1, 2, 4, 8, 8, 8}},       {'8', {14, 17, 17, 14, 17, 17, 14}},
    {'9', {14, 17, 17, 15, 1, 2, 12}},   {'A', {14, 17, 17, 31, 17, 17, 17}}, {'B', {30, 17, 17, 30, 17, 17, 30}},
    {'C', {14, 17, 16, 16, 16, 17, 14}}, {'D', {30, 17, 17, 17, 17, 17, 30}}, {'E', {31, 16, 16, 30, 16, 16, 31}},
    {'F', {31, 16, 16, 30, 16, 16, 16}}, {'G', {14, 17, 16, 23, 17, 17, 15}}, {'H', {17, 17, 17, 31, 17, 17, 17}},
    {'I', {14, 4, 4, 4, 4, 4, 14}},      {'J', {7, 2, 2, 2, 2, 18, 12}},      {'K', {17, 18, 20, 24, 20, 18, 17}},
    {'L', {16, 16, 16, 16, 16, 16, 31}}, {'M', {17, 27, 21, 21, 17, 17, 17}}, {'N', {17, 17, 25, 21, 19, 17, 17}},
    {'O', {14, 17, 17, 17, 17, 17, 14}}, {'P', {30, 17, 17, 30, 16, 16, 16}}, {'Q', {14, 17, 17, 17, 21, 18, 13}},
    {'R', {30, 17, 17, 30, 20, 18, 17}}, {'S', {15, 16, 16, 14, 1, 1, 30}},   {'T', {31, 4, 4, 4, 4, 4, 4}},
    {'U', {17, 17, 17, 17, 17, 17, 14}}, {'V', {17, 17, 17, 17, 17, 10, 4}},  {'W', {17, 17, 17, 21, 21, 21, 10}},
    {'X', {17, 17, 10, 4, 10, 17, 17}},  {'Y', {17, 17, 17, 10, 4, 4, 4}},    {'Z', {31, 1, 2, 4, 8, 16, 31}},
    {'-', {0, 0, 0, 31, 0, 0, 0}},       {'.', {0, 0, 0, 0, 0, 12, 12}},      {':', {0, 12, 12, 0, 12, 12, 0}},
    {'/', {0, 1, 2, 4, 8, 16, 0}},
};

void set_pixel(Image& image, int x, int y, std::uint8_t level) {
  std::uint8_t* pixel = image.rgb.data() + 3 * (static_cast<std::size_t>(y) * static_cast<std::size_t>(image.width) +
                                                static_cast<std::size_t>(x));
  std::fill_n(pixel, 3, level);
}

int label_width(std::string_view label, int scale) {
  return static_cast<int>(label.size()) * (kGlyphWidth + 1) * scale;
}

// Characters without a glyph stay blank.
void draw_label(Image& image, std::string_view label, int left, int top, int scale) {
  for (std::size_t i = 0; i < label.size(); ++i) {
    const char wanted = static_cast<char>(std::toupper(static_cast<unsigned char>(label[i])));
    const auto* found =
        std::find_if(std::begin(kGlyphs), std::end(kGlyphs), [&](const auto& g) { return g.first == wanted; });
    if (found == std::end(kGlyphs)) continue;
    const int x = left + static_cast<int>(i) * (kGlyphWidth + 1) * scale;
    for (int dy = 0; dy < kGlyphHeight * scale; ++dy) {
      for (int dx = 0; dx < kGlyphWidth * scale; ++dx) {
        const auto bits = static_cast<unsigned>(found->second[static_cast<std::size_t>(dy / scale)]);
        if (((bits >> static_cast<unsigned>(kGlyphWidth - 1 - dx / scale)) & 1U) != 0) {
          set_pixel(image, x + dx, top + dy, kInk);
        }
      }
    }
  }
}

// Scaled to fit side x side, keeping proportions.
Image thumbnail(const Image& image, int side) {
  const int longest = std::max(image.width, image.height);
  const auto fit = [&](int length) {
    return std::max(1, static_cast<int>(static_cast<std::int64_t>(length) * side / longest));
  };
  return resize_and_crop(image, fit(image.width), fit(image.height));
}

void paste(Image& sheet, const Image& picture, int left, int top) {
  for (int row = 0; row < picture.height; ++row) {
    const auto at = [](const Image& image, int x, int y) {
      return 3 * (static_cast<std::ptrdiff_t>(y) * image.width + x);
    };
    std::copy_n(picture.rgb.begin() + at(picture, 0, row), 3 * picture.width,
                sheet.rgb.begin() + at(sheet, left, top + row));
  }
}

}  // namespace

Image contact_sheet(const std::vector<SheetRow>& rows, int side,
                    const std::function<Image(const std::string& file)>& read) {
  if (side < 16) throw ConfigError({"contact sheet", std::to_string(side) + " pixels a picture", "at least 16", ""});
  const int scale = std::max(1, side / 100);
  std::size_t columns = 0;
  int margin = 0;
  for (const SheetRow& row : rows) {
    columns = std::max(columns, row.files.size());
    margin = std::max(margin, label_width(row.label, scale));
  }
  const std::int64_t width = kGap + margin + static_cast<std::int64_t>(columns) * (side + kGap);
  const std::int64_t height = kGap + static_cast<std::int64_t>(rows.size()) * (side + kGap);
  if (width > kLargestSide || height > kLargestSide) {
    throw ConfigError({"contact sheet", std::to_string(width) + " x " + std::to_string(height) + " pixels",
                       "at most " + std::to_string(kLargestSide) + " a side", "show fewer or smaller pictures"});
  }
  Image sheet{static_cast<int>(width), static_cast<int>(height), {}};
  sheet.rgb.assign(3 * static_cast<std::size_t>(width) * static_cast<std::size_t>(height), kBackground);
  int top = kGap;
  for (const SheetRow& row : rows) {
    draw_label(sheet, row.label, kGap, top + (side - kGlyphHeight * scale) / 2, scale);
    int left = kGap + margin;
    for (const std::string& file : row.files) {
      if (!file.empty()) {
        const Image picture = thumbnail(read(file), side);
        paste(sheet, picture, left + (side - picture.width) / 2, top + (side - picture.height) / 2);
      }
      left += side + kGap;
    }
    top += side + kGap;
  }
  return sheet;
}

}  // namespace squareq
