// Small files read whole, and files that appear under their name complete or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace squareq {

// All bytes of a file. Throws FileError.
std::string read_text(const std::string& path);

// A file written under a temporary name in the target's folder. commit() makes its bytes durable and gives it its name;
// without commit() nothing is left. Throws FileError (unwritable folder, full disk).
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  const std::string& path() const { return path_; }
  void write(std::span<const std::byte> bytes);  // after what was written so far
  void write(std::string_view bytes);
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes);  // leaves the position of write() alone
  void commit();

 private:
  std::string path_;
  std::string temporary_;
  int descriptor_ = -1;
  std::uint64_t position_ = 0;
};

// Removes what AtomicFiles of processes that are no more left in a folder.
void remove_abandoned(const std::string& folder);

// A log that a later process goes on with: records are appended whole or not at all.
class AppendFile {
 public:
  // Goes on after the first `position` bytes, which position() told an earlier process; what follows them is cut off.
  // 0 starts the file anew. Throws FileError, and FormatError if the file is shorter than `position`.
  AppendFile(std::string path, std::uint64_t position);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  // Throws FileError; the file then ends with the record before.
  void append(std::string_view record);
  // Makes everything up to position() durable.
  void sync();

  std::uint64_t position() const { return position_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int descriptor_ = -1;
  std::uint64_t position_ = 0;
};

void write_atomically(const std::string& path, std::span<const std::byte> bytes);
void write_atomically(const std::string& path, std::string_view bytes);

// Makes the entries of the folder of `path` durable, so that a file renamed to `path` is there after a power failure.
void sync_folder_of(const std::string& path);

}  // namespace squareq
