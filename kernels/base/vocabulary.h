// What tokenizer files say, as plain data: read by io, used by model/text.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace squareq {

// A string that is found in the prompt before any other rule applies and becomes one id.
struct AddedToken {
  std::string text;
  int32_t id = 0;
  bool normalized = false;   // searched for in the normalised text, not in the prompt as written
  bool strip_left = false;   // takes the whitespace before it along
  bool strip_right = false;  // takes the whitespace after it along
};

// Byte-level BPE with `</w>` at word ends (CLIP). Tokens are spelled in the 256-character byte alphabet.
struct ClipVocabulary {
  std::unordered_map<std::string, int32_t> ids;
  std::vector<std::pair<std::string, std::string>> merges;  // rank = index
  std::vector<AddedToken> added;
  int32_t bos = 0;
  int32_t eos = 0;
  int32_t pad = 0;
  int32_t unknown = 0;
  int32_t max_length = 77;
};

// SentencePiece unigram (T5).
struct T5Vocabulary {
  struct Piece {
    std::string text;
    double score = 0.0;  // as Hugging Face's reader computes it (io/tokenizer_files.h)
  };
  // When a piece of prompt gets a leading word mark (U+2581), if it has none already.
  enum class Prefix { kNever, kFirst, kAlways };

  std::vector<Piece> pieces;  // id = index
  std::vector<AddedToken> added;
  std::string charsmap;           // precompiled normalisation: trie and replacement pool; may be empty
  bool strip_right = true;        // drop whitespace at the end
  bool collapse_spaces = true;    // two or more spaces are one word mark
  bool split_whitespace = false;  // older conversions: cut at whitespace, mark every word (prefix is kAlways)
  Prefix prefix = Prefix::kFirst;
  int32_t unknown = 2;
  int32_t eos = 1;
  int32_t pad = 0;
  int32_t max_length = 512;
};

}  // namespace squareq
