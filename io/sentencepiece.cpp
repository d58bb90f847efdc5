#include "io/sentencepiece.h"

#include <fmt/format.h>

#include <bit>
#include <charconv>
#include <cmath>

#include "io/tokenizer_json.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

struct Field {
  uint64_t number = 0;
  uint64_t value = 0;      // wire types 0, 1 and 5
  std::string_view bytes;  // wire type 2
  int wire = 0;
};

// Walks the fields of one protobuf message; every length is checked against the bytes that are left.
class Message {
 public:
  Message(std::string_view bytes, const std::string& where) : rest_(bytes), size_(bytes.size()), where_(where) {}

  bool next(Field& field) {
    if (rest_.empty()) return false;
    const uint64_t key = varint();
    field = {.number = key >> 3, .wire = static_cast<int>(key & 7)};
    switch (field.wire) {
      case 0: field.value = varint(); return true;
      case 1: field.value = fixed(8); return true;
      case 2: field.bytes = take(varint()); return true;
      case 5: field.value = fixed(4); return true;
      default: refuse(fmt::format("wire type {}", field.wire), "wire type 0, 1, 2 or 5");
    }
  }

  [[noreturn]] void refuse(const std::string& found, const std::string& expected) const {
    throw FormatError({where_, fmt::format("{} at byte {} of {}", found, size_ - rest_.size(), size_), expected,
                       "download the tokenizer's files again"});
  }

 private:
  std::string_view take(uint64_t count) {
    if (count > rest_.size()) refuse(fmt::format("a field of {} bytes", count), "a field that fits");
    const std::string_view taken = rest_.substr(0, static_cast<size_t>(count));
    rest_.remove_prefix(taken.size());
    return taken;
  }

  uint64_t fixed(size_t count) {
    const std::string_view bytes = take(count);
    uint64_t value = 0;
    for (size_t i = 0; i < count; ++i) value |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
    return value;
  }

  uint64_t varint() {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1)[0]);
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    refuse("a number of more than 10 bytes", "a varint");
  }

  std::string_view rest_;
  size_t size_;
  const std::string& where_;
};

double score_of(float stored) {
  char text[64];
  const auto [end, error] = std::to_chars(std::begin(text), std::end(text), static_cast<double>(stored));
  return tokenizer_score({text, error == std::errc() ? static_cast<size_t>(end - text) : 0});
}

void read_piece(std::string_view bytes, const std::string& where, T5Vocabulary& vocabulary) {
  constexpr uint64_t kUnknown = 2;
  T5Vocabulary::Piece piece;
  Message message(bytes, where);
  for (Field field; message.next(field);) {
    if (field.number == 1 && field.wire == 2) piece.text = field.bytes;
    if (field.number == 2 && field.wire == 5) {
      const auto score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
      if (!std::isfinite(score)) message.refuse("a score that is not finite", "a finite score");
      piece.score = score_of(score);
    }
    if (field.number == 3 && field.wire == 0 && field.value == kUnknown) {
      vocabulary.unknown = static_cast<int32_t>(vocabulary.pieces.size());
    }
  }
  vocabulary.pieces.push_back(std::move(piece));
}

void check_trainer(std::string_view bytes, const std::string& where) {
  Message message(bytes, where);
  for (Field field; message.next(field);) {
    if (field.wire != 0) continue;
    if (field.number == 3 && field.value != 1) message.refuse(fmt::format("model type {}", field.value), "1 (unigram)");
    if (field.number == 24 && field.value != 0) message.refuse("whitespace as suffix", "whitespace before words");
    if (field.number == 35 && field.value != 0) message.refuse("byte fallback", "a model without byte fallback");
  }
}

void read_normaliser(std::string_view bytes, const std::string& where, T5Vocabulary& vocabulary) {
  Message message(bytes, where);
  for (Field field; message.next(field);) {
    if (field.number == 2 && field.wire == 2) vocabulary.charsmap = field.bytes;
    if (field.wire != 0 || field.value != 0) continue;
    if (field.number == 3) vocabulary.prefix = T5Vocabulary::Prefix::kNever;
    if (field.number == 4) message.refuse("remove_extra_whitespaces off", "on");
    if (field.number == 5) message.refuse("escape_whitespaces off", "on");
  }
}

}  // namespace

T5Vocabulary parse_sentencepiece(std::string_view bytes, const std::string& where) {
  T5Vocabulary vocabulary;
  Message message(bytes, where);
  for (Field field; message.next(field);) {
    if (field.wire != 2) continue;
    if (field.number == 1) read_piece(field.bytes, where, vocabulary);
    if (field.number == 2) check_trainer(field.bytes, where);
    if (field.number == 3) read_normaliser(field.bytes, where, vocabulary);
  }
  if (vocabulary.pieces.empty()) message.refuse("no pieces", "a SentencePiece model");
  return vocabulary;
}

}  // namespace squareq
