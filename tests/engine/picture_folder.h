// A folder of small pictures with captions.
#pragma once

#include <filesystem>
#include <string>

#include "engine/dataset.h"
#include "io/image.h"
#include "tests/support.h"

namespace squareq::test {

class PictureFolder {
 public:
  std::string path() const { return folder_.path().string(); }
  std::string file(std::string_view name) const { return folder_.file(name); }

  // Another picture for every value.
  void add(const std::string& name, int width, int height, const std::string& caption, int value = 0) const {
    Image image{width, height, {}, {}};
    for (int i = 0; i < 3 * width * height; ++i) {
      image.rgb.push_back(static_cast<std::uint8_t>((i * 37 + i / 91 * 5 + value * 11) % 251));
    }
    write_png(file(name), image);
    write_file(file(std::filesystem::path(name).replace_extension(".txt").string()), caption);
  }

  // Data of this folder in buckets of resolution 64, whose sides are multiples of 16.
  DataConfig data() const {
    DataConfig data;
    data.folder = path();
    data.resolution = {64};
    data.bucket_step = 16;
    data.folders = {data};
    return data;
  }

 private:
  TempDir folder_;
};

}  // namespace squareq::test
