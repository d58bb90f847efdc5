#include "io/tensorboard.h"

#include <array>
#include <bit>
#include <chrono>
#include <utility>

#include "kernels/base/error.h"

namespace squareq {
namespace {

constexpr std::array<std::uint32_t, 256> kCrcTable = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1U) ^ ((value & 1U) != 0 ? 0x82F63B78U : 0U);
    table[i] = value;
  }
  return table;
}();

std::uint32_t masked_crc(std::string_view bytes) {
  const std::uint32_t crc = crc32c(std::as_bytes(std::span(bytes)));
  return std::rotr(crc, 15) + 0xA282EAD8U;
}

template <class Unsigned>
void put_little_endian(std::string& to, Unsigned value) {
  for (std::size_t i = 0; i < sizeof(Unsigned); ++i) to += static_cast<char>((value >> (8 * i)) & 0xFFU);
}

// Protocol buffers: a field is its number and the kind of its encoding, then its value.
enum class Wire : std::uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void put_varint(std::string& to, std::uint64_t value) {
  for (; value >= 0x80U; value >>= 7U) to += static_cast<char>((value & 0x7FU) | 0x80U);
  to += static_cast<char>(value);
}

void put_key(std::string& to, std::uint32_t field, Wire wire) {
  put_varint(to, (field << 3U) | static_cast<std::uint32_t>(wire));
}

void put_integer(std::string& to, std::uint32_t field, std::int64_t value) {
  put_key(to, field, Wire::kVarint);
  put_varint(to, static_cast<std::uint64_t>(value));
}

void put_double(std::string& to, std::uint32_t field, double value) {
  put_key(to, field, Wire::kFixed64);
  put_little_endian(to, std::bit_cast<std::uint64_t>(value));
}

void put_float(std::string& to, std::uint32_t field, float value) {
  put_key(to, field, Wire::kFixed32);
  put_little_endian(to, std::bit_cast<std::uint32_t>(value));
}

void put_bytes(std::string& to, std::uint32_t field, std::string_view bytes) {
  put_key(to, field, Wire::kBytes);
  put_varint(to, bytes.size());
  to += bytes;
}

// Field numbers of the messages, from event.proto and summary.proto.
namespace event_field {
constexpr std::uint32_t kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5;
}
namespace summary_field {
constexpr std::uint32_t kValue = 1;
}
namespace value_field {
constexpr std::uint32_t kTag = 1, kSimpleValue = 2, kImage = 4;
}
namespace image_field {
constexpr std::uint32_t kHeight = 1, kWidth = 2, kColorspace = 3, kEncoded = 4;
}

void put_value(std::string& event, const std::string& value) {
  std::string summary;
  put_bytes(summary, summary_field::kValue, value);
  put_bytes(event, event_field::kSummary, summary);
}

std::uint32_t big_endian(std::string_view bytes) {
  std::uint32_t value = 0;
  for (const char c : bytes) value = (value << 8U) | static_cast<unsigned char>(c);
  return value;
}

}  // namespace

std::uint32_t crc32c(std::span<const std::byte> bytes) {
  std::uint32_t crc = 0xFFFFFFFFU;
  for (const std::byte byte : bytes) {
    crc = (crc >> 8U) ^ kCrcTable[(crc ^ static_cast<std::uint32_t>(byte)) & 0xFFU];
  }
  return ~crc;
}

EventWriter::EventWriter(std::string path, std::uint64_t position, bool timestamps)
    : file_(std::move(path), position), timestamps_(timestamps) {
  if (position > 0) return;
  std::string first = event(0);
  put_bytes(first, event_field::kFileVersion, "brain.Event:2");
  append(first);
}

void EventWriter::scalar(std::int64_t step, std::string_view tag, double value) {
  std::string fields;
  put_bytes(fields, value_field::kTag, tag);
  put_float(fields, value_field::kSimpleValue, static_cast<float>(value));
  std::string record = event(step);
  put_value(record, fields);
  append(record);
}

void EventWriter::image(std::int64_t step, std::string_view tag, std::string_view png) {
  // Signature, then the IHDR chunk: length, "IHDR", width, height.
  if (png.size() < 24 || !png.starts_with("\x89PNG\r\n\x1a\n") || png.substr(12, 4) != "IHDR") {
    throw FormatError(
        {file_.path(), "a picture for '" + std::string(tag) + "' that is no PNG", "the bytes of a PNG file", ""});
  }
  constexpr std::int64_t kRgb = 3;
  std::string image;
  put_integer(image, image_field::kHeight, big_endian(png.substr(20, 4)));
  put_integer(image, image_field::kWidth, big_endian(png.substr(16, 4)));
  put_integer(image, image_field::kColorspace, kRgb);
  put_bytes(image, image_field::kEncoded, png);
  std::string fields;
  put_bytes(fields, value_field::kTag, tag);
  put_bytes(fields, value_field::kImage, image);
  std::string record = event(step);
  put_value(record, fields);
  append(record);
}

std::string EventWriter::event(std::int64_t step) const {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  std::string fields;
  put_double(fields, event_field::kWallTime, timestamps_ ? now.count() : 0.0);
  put_integer(fields, event_field::kStep, step);
  return fields;
}

void EventWriter::append(std::string_view event) {
  std::string record;
  put_little_endian(record, static_cast<std::uint64_t>(event.size()));
  put_little_endian(record, masked_crc(record));
  record += event;
  put_little_endian(record, masked_crc(event));
  file_.append(record);
}

}  // namespace squareq
