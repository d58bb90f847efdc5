#include <turbojpeg.h>

#include <memory>
#include <string_view>

#include "io/image_codecs.h"
#include "io/large_memory.h"

namespace squareq::image_codecs {
namespace {

struct Destroy {
  void operator()(void* handle) const noexcept { tjDestroy(handle); }
};

// What libjpeg goes on after with made-up pixels, in contrast to oddities that cost nothing.
bool lost_pixels(std::string_view warning) {
  if (warning.find("extraneous bytes before marker") != std::string_view::npos) return false;
  return warning.find("Corrupt JPEG data") != std::string_view::npos ||
         warning.find("Premature end") != std::string_view::npos ||
         warning.find("Inconsistent progression") != std::string_view::npos;
}

}  // namespace

Pixels decode_jpeg(std::span<const std::byte> data, const image_format::Header& header, const std::string& name) {
  const std::unique_ptr<void, Destroy> decoder(tjInitDecompress());
  if (!decoder) throw std::bad_alloc();
  Pixels pixels;
  pixels.samples =
      large_vector<std::uint8_t>(3 * static_cast<std::size_t>(header.width) * static_cast<std::size_t>(header.height));
  // A limit on scans: a small progressive file may hold thousands, each of which costs a pass over the whole picture.
  const int status = tjDecompress2(decoder.get(), reinterpret_cast<const unsigned char*>(data.data()), data.size(),
                                   pixels.samples.data(), header.width, 3 * header.width, header.height, TJPF_RGB,
                                   TJFLAG_ACCURATEDCT | TJFLAG_LIMITSCANS);
  if (status != 0) {
    const std::string reason = tjGetErrorStr2(decoder.get());
    if (tjGetErrorCode(decoder.get()) != TJERR_WARNING || lost_pixels(reason)) undecodable(name, reason);
  }
  return pixels;
}

}  // namespace squareq::image_codecs
