#include "apps/bench/decode.h"

#include <fmt/format.h>
#include <turbojpeg.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "io/image.h"
#include "io/mapped_file.h"
#include "kernels/base/error.h"
#include "kernels/base/thread_pool.h"

namespace squareq::bench {
namespace {

struct Destroy {
  void operator()(void* handle) const noexcept { tjDestroy(handle); }
};

// A decoder with memory of its own, for one thread.
struct Bare {
  std::unique_ptr<void, Destroy> handle{tjInitDecompress()};
  std::vector<unsigned char> pixels;

  void operator()(const MappedFile& file) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(file.bytes().data());
    int width = 0, height = 0, subsampling = 0, colours = 0;
    if (tjDecompressHeader3(handle.get(), bytes, file.bytes().size(), &width, &height, &subsampling, &colours) != 0) {
      throw FormatError({file.path(), tjGetErrorStr2(handle.get()), "a JPEG picture", ""});
    }
    pixels.resize(3 * static_cast<std::size_t>(width) * static_cast<std::size_t>(height));
    tjDecompress2(handle.get(), bytes, file.bytes().size(), pixels.data(), width, 3 * width, height, TJPF_RGB,
                  TJFLAG_ACCURATEDCT);
  }
};

// Median seconds to do `work` for every file.
double median_seconds(ThreadPool& pool, std::size_t files, int repeats,
                      const std::function<void(std::size_t file, int worker)>& work) {
  std::vector<double> seconds;
  for (int repeat = 0; repeat <= repeats; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    pool.parallel_for(static_cast<std::int64_t>(files),
                      [&](std::int64_t i, int worker) { work(static_cast<std::size_t>(i), worker); });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    if (repeat > 0) seconds.push_back(took.count());  // the first one warms up
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace

int run_decode(const DecodeOptions& options, bool json) {
  std::vector<MappedFile> files;
  double megapixels = 0.0;
  for (const std::string& path : options.files) {
    const MappedFile& file = files.emplace_back(path);
    const ImageSize size = image_size(file.bytes(), path);
    megapixels += static_cast<double>(size.width) * size.height * 1e-6;
  }
  ThreadPool pool(options.threads);
  std::vector<Bare> bare(static_cast<std::size_t>(pool.size()));
  const auto rate = [&](const std::function<void(std::size_t, int)>& work) {
    return megapixels / median_seconds(pool, files.size(), options.repeats, work);
  };
  const double alone = rate([&](std::size_t i, int worker) { bare[static_cast<std::size_t>(worker)](files[i]); });
  const double ours = rate([&](std::size_t i, int) { read_image(files[i].path()); });
  const double crops = rate([&](std::size_t i, int) { resize_and_crop(read_image(files[i].path()), 1024, 1024); });
  if (json) {
    fmt::print("{}\n", nlohmann::json{{"threads", pool.size()},
                                      {"megapixels", megapixels},
                                      {"libjpeg_turbo", alone},
                                      {"read_image", ours},
                                      {"with_crop", crops}}
                           .dump());
  } else {
    fmt::print("{} files, {:.1f} megapixels, {} threads\n", files.size(), megapixels, pool.size());
    fmt::print("libjpeg-turbo alone      {:8.1f} megapixels/s\n", alone);
    fmt::print("read_image               {:8.1f} megapixels/s  {:.2f}\n", ours, ours / alone);
    fmt::print("and crop to 1024 x 1024  {:8.1f} megapixels/s  {:.2f}\n", crops, crops / alone);
  }
  return 0;
}

}  // namespace squareq::bench
