#include "io/random_access_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "kernels/base/error.h"

namespace squareq {
namespace {

[[noreturn]] void fail(const std::string& path, int error, const char* expected) {
  throw FileError({path, std::generic_category().message(error), expected, ""});
}

}  // namespace

RandomAccessFile::RandomAccessFile(std::string path, Mode mode) : path_(std::move(path)) {
  const bool direct = mode == Mode::kDirect;
  descriptor_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0));
  if (descriptor_ < 0) fail(path_, errno, direct ? "a file on a file system with direct reads" : "a file to read");
  try {
    opened_ = stamp();
  } catch (...) {
    close(descriptor_);
    throw;
  }
}

RandomAccessFile::~RandomAccessFile() { close(descriptor_); }

void RandomAccessFile::read(std::uint64_t offset, std::span<std::byte> into) const {
  std::size_t done = 0;
  while (done < into.size()) {
    const ssize_t count = pread(descriptor_, into.data() + done, into.size() - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path_, errno, "bytes that can be read");
    if (count == 0) {
      throw FileError({.where = path_,
                       .found = "its end at byte " + std::to_string(offset + done),
                       .expected = std::to_string(opened_.size) + " bytes, as when it was opened",
                       .advice = "something cut the file while it was in use; make it again"});
    }
    done += static_cast<std::size_t>(count);
  }
}

RandomAccessFile::Stamp RandomAccessFile::stamp() const {
  struct stat status {};
  if (fstat(descriptor_, &status) != 0) fail(path_, errno, "a file that can be looked at");
  return {.size = status.st_size, .seconds = status.st_mtim.tv_sec, .nanoseconds = status.st_mtim.tv_nsec};
}

void RandomAccessFile::check_unchanged() const {
  const Stamp now = stamp();
  if (now == opened_) return;
  const bool cut = now.size != opened_.size;
  throw FileError(
      {.where = path_,
       .found = cut ? std::to_string(now.size) + " bytes" : "that it was written to",
       .expected = cut ? std::to_string(opened_.size) + " bytes, as when it was opened" : "the file as it was opened",
       .advice = "keep the file as it is during a run; start again when it is whole"});
}

}  // namespace squareq
