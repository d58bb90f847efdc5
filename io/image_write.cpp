#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "io/file.h"
#include "io/image.h"
#include "io/image_format.h"
#include "kernels/base/error.h"

#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STBI_WRITE_NO_STDIO
#include <stb_image_write.h>

namespace squareq {
namespace {

struct Free {
  void operator()(void* memory) const noexcept { std::free(memory); }  // what stb allocates with
};

void append_number(std::string& out, std::uint32_t value) {
  for (unsigned shift = 32; shift > 0; shift -= 8) out += static_cast<char>(value >> (shift - 8) & 0xFFU);
}

// A text chunk of PNG (third edition, 11.3.3): length, type, content, CRC of type and content.
std::string text_chunk(const std::string& keyword, const std::string& value) {
  const auto printable = [](char c) { return c >= ' ' && c <= '~'; };
  if (keyword.empty() || keyword.size() > 79 || !std::all_of(keyword.begin(), keyword.end(), printable) ||
      value.find('\0') != std::string::npos) {
    throw FormatError({fmt::format("PNG text '{}'", keyword), "a keyword or value that PNG cannot hold",
                       "a keyword of 1 to 79 printable ASCII characters and a value without zero bytes", ""});
  }
  const bool ascii = std::all_of(value.begin(), value.end(), [](char c) { return static_cast<signed char>(c) >= 0; });
  std::string body = (ascii ? "tEXt" : "iTXt") + keyword + '\0';
  if (!ascii) body.append(4, '\0');  // not compressed (flag, method), no language, no translated keyword
  body += value;
  std::string chunk;
  append_number(chunk, static_cast<std::uint32_t>(body.size() - 4));
  chunk += body;
  append_number(chunk, image_format::crc32(std::as_bytes(std::span(body))));
  return chunk;
}

}  // namespace

void write_png(const std::string& path, const Image& image, const PngText& text) {
  const std::int64_t pixels = std::int64_t{image.width} * image.height;
  if (image.width < 1 || image.height < 1 || std::max(image.width, image.height) > image_format::kMaxSide ||
      pixels > image_format::kMaxPixels || static_cast<std::int64_t>(image.rgb.size()) != 3 * pixels) {
    throw FormatError({path, fmt::format("{} x {} pixels in {} bytes", image.width, image.height, image.rgb.size()),
                       "three bytes a pixel and a size that PNG files are read with", ""});
  }
  int size = 0;
  const std::unique_ptr<unsigned char[], Free> encoded(
      stbi_write_png_to_mem(image.rgb.data(), 3 * image.width, image.width, image.height, 3, &size));
  if (!encoded) throw std::bad_alloc();
  constexpr std::size_t kHeader = 33;  // signature and IHDR, after which text may stand
  std::string png(encoded.get(), encoded.get() + size);
  std::string chunks;
  for (const auto& [keyword, value] : text) chunks += text_chunk(keyword, value);
  png.insert(kHeader, chunks);
  write_atomically(path, png);
}

}  // namespace squareq
