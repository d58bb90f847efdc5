// Event files that TensorBoard shows: scalars and pictures over steps.
//
// A file is a sequence of records: u64 length, masked CRC-32C of it, bytes, masked CRC-32C of those. The bytes are
// tensorflow.Event messages, of whose fields the few that are needed are encoded here.
// https://www.tensorflow.org/tutorials/load_data/tfrecord, tensorflow/core/util/event.proto
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "io/file.h"

namespace squareq {

// CRC-32C (Castagnoli), as in RFC 3720.
std::uint32_t crc32c(std::span<const std::byte> bytes);

// TensorBoard looks for files whose name contains this.
inline constexpr std::string_view kEventFileMark = "tfevents";

class EventWriter {
 public:
  // Starts the file anew, or goes on in it after `position` bytes as AppendFile does, which says what is thrown. With
  // `timestamps` false every event is at time 0, and the same calls give the same bytes.
  EventWriter(std::string path, std::uint64_t position, bool timestamps = true);

  // Each call appends one whole record. Throws FileError.
  void scalar(std::int64_t step, std::string_view tag, double value);
  // `png`: the bytes of a PNG file. Throws FormatError if they are none.
  void image(std::int64_t step, std::string_view tag, std::string_view png);
  void sync() { file_.sync(); }

  std::uint64_t position() const { return file_.position(); }

 private:
  void append(std::string_view event);
  std::string event(std::int64_t step) const;  // its first fields

  AppendFile file_;
  bool timestamps_;
};

}  // namespace squareq
