#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "kernels/base/error.h"

namespace squareq {
namespace {

[[noreturn]] void fail(const std::string& path, int error) {
  throw FileError({path, std::generic_category().message(error), "a file that can be read", ""});
}

}  // namespace

MappedFile::MappedFile(std::string path) : path_(std::move(path)) {
  // Without O_NONBLOCK, opening a named pipe that nobody writes to would wait for ever.
  const int descriptor = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) fail(path_, errno);
  struct stat status {};
  if (fstat(descriptor, &status) != 0) {
    const int error = errno;
    close(descriptor);
    fail(path_, error);
  }
  if (!S_ISREG(status.st_mode)) {
    close(descriptor);
    throw FileError({path_, S_ISDIR(status.st_mode) ? "a folder" : "no regular file", "a file", ""});
  }
  size_ = static_cast<std::size_t>(status.st_size);
  if (size_ > 0) {  // an empty range cannot be mapped
    void* memory = mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
    const int error = errno;
    close(descriptor);
    if (memory == MAP_FAILED) fail(path_, error);
    data_ = static_cast<const std::byte*>(memory);
    guard_ = MappingGuard(bytes());
  } else {
    close(descriptor);
  }
}

MappedFile::~MappedFile() {
  guard_ = {};
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      guard_(std::move(other.guard_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(guard_, other.guard_);
  return *this;
}

void MappedFile::check_whole() const {
  if (!guard_.hit()) return;
  throw FileError({.where = path_,
                   .found = "that a part of it is gone, or cannot be read any more",
                   .expected = std::to_string(size_) + " bytes, as when it was opened",
                   .advice = "keep the file as it is while it is used; make it again if it is damaged"});
}

}  // namespace squareq
