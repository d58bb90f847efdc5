// A file that is read in pieces from many threads, with errors where a mapping would end the program (a file that
// shrinks while it is read), and without the page cache if wanted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace squareq {

class RandomAccessFile {
 public:
  enum class Mode : std::uint8_t {
    kCached,
    kDirect,  // O_DIRECT: offsets, sizes and addresses are multiples of kPage
  };
  static constexpr std::size_t kPage = 4096;

  // Throws FileError if the file cannot be opened in this mode; some file systems have no direct reads.
  RandomAccessFile(std::string path, Mode mode);
  ~RandomAccessFile();
  RandomAccessFile(const RandomAccessFile&) = delete;
  RandomAccessFile& operator=(const RandomAccessFile&) = delete;

  // Fills `into` from `offset` on. Throws FileError if reading fails or the file ends before.
  void read(std::uint64_t offset, std::span<std::byte> into) const;

  // Throws FileError if the file was written to, cut or extended since it was opened.
  void check_unchanged() const;

 private:
  struct Stamp {
    std::int64_t size = 0, seconds = 0, nanoseconds = 0;  // of the last change of its content
    bool operator==(const Stamp&) const = default;
  };
  Stamp stamp() const;

  std::string path_;
  int descriptor_ = -1;
  Stamp opened_;
};

}  // namespace squareq
