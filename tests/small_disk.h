// A file system that is soon full.
#pragma once

#include <fcntl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <string_view>

#include "tests/support.h"

namespace squareq::test {

// A tmpfs of `kilobytes`, for as long as it lives. Mounting takes rights that not everybody has: see mounted().
class SmallDisk {
 public:
  explicit SmallDisk(int kilobytes) {
    const std::string size = "size=" + std::to_string(kilobytes) + "k";
    mounted_ = mount("tmpfs", folder_.path().c_str(), "tmpfs", 0, size.c_str()) == 0;
  }
  ~SmallDisk() {
    if (mounted_) umount(folder_.path().c_str());
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;

  bool mounted() const { return mounted_; }
  std::string file(std::string_view name) const { return folder_.file(name); }

  // Takes all that is left; free() gives it back.
  void fill() const {
    const std::string page(4096, 'x');
    const int filler = open(file("filler").c_str(), O_WRONLY | O_CREAT, 0600);
    while (write(filler, page.data(), page.size()) > 0) {
    }
    close(filler);
  }
  void free() const { std::filesystem::remove(file("filler")); }

  std::size_t files() const {
    std::size_t count = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_.path())) {
      if (entry.is_regular_file() && entry.path().filename() != "filler") ++count;
    }
    return count;
  }

 private:
  TempDir folder_;
  bool mounted_ = false;
};

}  // namespace squareq::test

// Leaves the test, which CTest then reports as skipped.
#define SKIP_UNLESS_MOUNTED(disk)                                               \
  if (!(disk).mounted()) {                                                      \
    WARN("SKIPPED: a small file system cannot be mounted without root rights"); \
    return;                                                                     \
  }
