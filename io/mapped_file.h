// A whole file as read-only memory. Pages come from the page cache on first touch, so files larger than RAM are fine.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "io/mapping_guard.h"

namespace squareq {

class MappedFile {
 public:
  // Throws FileError if the file cannot be opened or is not a regular file.
  explicit MappedFile(std::string path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // Where the file was cut or cannot be read any more, these are zeros.
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // Throws FileError if such zeros were read. To be called before results of what was read are used.
  void check_whole() const;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  MappingGuard guard_;
};

}  // namespace squareq
