#include "io/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <regex>
#include <system_error>
#include <utility>

#include "io/mapped_file.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail_writing(const std::string& path, int error) {
  std::string advice;
  if (error == ENOSPC || error == EDQUOT) advice = "free some disk space or write somewhere else";
  if (error == EACCES || error == EROFS || error == ENOENT) advice = "check that the folder exists and can be written";
  throw FileError({path, std::generic_category().message(error), "to write the file", advice});
}

std::string folder_of(const std::string& path) {
  const fs::path folder = fs::path(path).parent_path();
  return folder.empty() ? "." : folder.string();
}

// 0, or the error that ended it.
int write_all(int descriptor, std::uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = pwrite(descriptor, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return written == 0 ? EIO : errno;
    offset += static_cast<std::uint64_t>(written);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return 0;
}

}  // namespace

std::string read_text(const std::string& path) {
  const MappedFile file(path);
  const std::span<const std::byte> bytes = file.bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  std::error_code ignored;
  const std::string name = fs::path(path_).filename().string();
  if (name.empty() || fs::is_directory(path_, ignored)) throw FileError({path_, "a folder", "a file to write", ""});
  // Created as any file is, so that it gets the usual permissions; a file left over by a killed process is passed by.
  for (int attempt = 0; descriptor_ < 0; ++attempt) {
    temporary_ = fmt::format("{}/.{}.{}-{}.tmp", folder_of(path_), name, getpid(), attempt);
    descriptor_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0 && errno != EEXIST) fail_writing(path_, errno);
  }
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      position_(other.position_) {}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  write_at(position_, bytes);
  position_ += bytes.size();
}

void AtomicFile::write(std::string_view bytes) { write(std::as_bytes(std::span(bytes))); }

void AtomicFile::write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
  const int error = write_all(descriptor_, offset, bytes);
  if (error != 0) fail_writing(path_, error);
}

void AtomicFile::commit() {
  if (fsync(descriptor_) != 0) fail_writing(path_, errno);
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail_writing(path_, errno);
  close(std::exchange(descriptor_, -1));
  sync_folder_of(path_);
}

void remove_abandoned(const std::string& folder) {
  static const std::regex temporary(R"(\..*\.(\d{1,9})-\d+\.tmp)");  // as AtomicFile names them
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    std::smatch match;
    if (!std::regex_match(name, match, temporary)) continue;
    if (kill(std::stoi(match[1]), 0) == 0 || errno != ESRCH) continue;
    fs::remove(entry.path(), error);
  }
}

AppendFile::AppendFile(std::string path, std::uint64_t position) : path_(std::move(path)), position_(position) {
  descriptor_ = open(path_.c_str(), O_WRONLY | O_CLOEXEC | (position == 0 ? O_CREAT : 0), 0666);
  if (descriptor_ < 0) fail_writing(path_, errno);
  const off_t size = lseek(descriptor_, 0, SEEK_END);
  const bool enough = size >= 0 && static_cast<std::uint64_t>(size) >= position;
  const int error = size < 0 || (enough && ftruncate(descriptor_, static_cast<off_t>(position)) != 0) ? errno : 0;
  if (enough && error == 0) return;
  close(descriptor_);
  if (error != 0) fail_writing(path_, error);
  throw FormatError({path_, fmt::format("{} bytes", size),
                     fmt::format("at least the {} that were there when the state was saved", position),
                     "the file has been changed since; without that state the run starts a new one"});
}

AppendFile::~AppendFile() { close(descriptor_); }

void AppendFile::append(std::string_view record) {
  const int error = write_all(descriptor_, position_, std::as_bytes(std::span(record)));
  if (error != 0) {
    // Half a record would disturb readers. Where it cannot be cut off either, the error to report is the same.
    [[maybe_unused]] const int ignored = ftruncate(descriptor_, static_cast<off_t>(position_));
    fail_writing(path_, error);
  }
  position_ += record.size();
}

void AppendFile::sync() {
  if (fsync(descriptor_) != 0) fail_writing(path_, errno);
}

void write_atomically(const std::string& path, std::span<const std::byte> bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

void write_atomically(const std::string& path, std::string_view bytes) {
  write_atomically(path, std::as_bytes(std::span(bytes)));
}

void sync_folder_of(const std::string& path) {
  const int descriptor = open(folder_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail_writing(path, errno);
  // Some file systems (network ones) cannot sync folders; the rename has happened all the same.
  const int error = fsync(descriptor) == 0 || errno == EINVAL || errno == ENOTSUP ? 0 : errno;
  close(descriptor);
  if (error != 0) fail_writing(path, error);
}

}  // namespace squareq
