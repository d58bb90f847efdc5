// T5's SentencePiece unigram tokenizer, as Hugging Face's fast tokenizer computes it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/vocabulary.h"
#include "model/text/charsmap.h"

namespace squareq {

class T5Tokenizer {
 public:
  // Throws FormatError when the vocabulary is empty, lacks its special ids, or its charsmap is broken.
  explicit T5Tokenizer(T5Vocabulary vocabulary);

  // The prompt's ids (cut at max_length - 1) and the end id. Bytes that are not UTF-8 count as U+FFFD.
  // max_length 0 means max_length().
  std::vector<int32_t> encode(std::string_view prompt, int32_t max_length = 0) const;

  // Fills up with the padding id to max_length (0: max_length()); the first ids.size() positions are real tokens.
  std::vector<int32_t> pad(std::vector<int32_t> ids, int32_t max_length = 0) const;

  int32_t eos() const noexcept { return vocabulary_.eos; }
  int32_t max_length() const noexcept { return vocabulary_.max_length; }  // from the tokenizer's own files

 private:
  std::string normalise(std::string_view text) const;
  void encode_text(std::string_view text, bool first, std::vector<int32_t>& ids) const;
  void encode_marked(std::string text, bool first, std::vector<int32_t>& ids) const;
  void encode_word(std::string_view word, std::vector<int32_t>& ids) const;

  T5Vocabulary vocabulary_;
  Charsmap charsmap_;
  std::vector<int32_t> sorted_;  // ids in the order of their pieces' bytes, each piece once
  double unknown_score_ = 0.0;
};

}  // namespace squareq
