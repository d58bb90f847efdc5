// CLIP's byte-level BPE tokenizer, as Hugging Face's fast tokenizer computes it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kernels/base/vocabulary.h"

namespace squareq {

class ClipTokenizer {
 public:
  // Throws FormatError when a merge names a token that the vocabulary lacks, or the length leaves no room.
  explicit ClipTokenizer(const ClipVocabulary& vocabulary);

  // Begin id, the prompt's ids (cut at max_length - 2), end id. Bytes that are not UTF-8 count as U+FFFD.
  std::vector<int32_t> encode(std::string_view prompt) const;

  // encode() filled up with the padding id to max_length.
  std::vector<int32_t> encode_padded(std::string_view prompt) const;

  int32_t bos() const noexcept { return bos_; }
  int32_t eos() const noexcept { return eos_; }
  int32_t max_length() const noexcept { return max_length_; }

 private:
  struct Merge {
    uint32_t rank;
    int32_t id;
  };

  void encode_text(std::string_view text, std::vector<int32_t>& ids) const;
  void encode_word(std::string_view word, std::vector<int32_t>& ids) const;
  const Merge* find_merge(int32_t left, int32_t right) const;

  std::array<int32_t, 256> byte_ids_{};       // the byte inside a word
  std::array<int32_t, 256> last_byte_ids_{};  // the byte at a word's end
  std::unordered_map<uint64_t, Merge> merges_;
  std::vector<AddedToken> added_;
  int32_t bos_;
  int32_t eos_;
  int32_t pad_;
  int32_t max_length_;
};

}  // namespace squareq
