#include "model/text/clip_tokenizer.h"

#include <fmt/format.h>
#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>

#include <algorithm>
#include <queue>

#include "kernels/base/error.h"
#include "model/text/recent_characters.h"
#include "model/text/unicode.h"

namespace squareq {
namespace {

// The printable character that stands for each byte in vocabulary files.
std::array<std::string, 256> byte_alphabet() {
  std::array<std::string, 256> alphabet;
  char32_t next = 256;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    append_utf8(alphabet[byte], itself ? byte : next++);
  }
  return alphabet;
}

uint64_t pair_key(int32_t left, int32_t right) {
  return (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
}

enum class Kind { kSpace, kLetter, kNumber, kOther };

Kind kind_of(char32_t code_point) {
  const auto c = static_cast<UChar32>(code_point);
  const uint32_t category = U_GET_GC_MASK(c);
  if (category & U_GC_L_MASK) return Kind::kLetter;
  if (category & U_GC_N_MASK) return Kind::kNumber;
  if (category & U_GC_CN_MASK) {
    const RecentCharacters* recent = find_recent(code_point);
    return !recent ? Kind::kOther : recent->number ? Kind::kNumber : Kind::kLetter;
  }
  return u_isUWhiteSpace(c) ? Kind::kSpace : Kind::kOther;
}

// Lower case of a code point on its own: no final sigma, and one letter that becomes two.
void append_lower(std::string& out, char32_t code_point) {
  const auto c = static_cast<UChar32>(code_point);
  if (code_point == 0x130) {
    out += "i\xCC\x87";
    return;
  }
  const RecentCharacters* recent = u_isdefined(c) ? nullptr : find_recent(code_point);
  append_utf8(out, static_cast<char32_t>(recent ? c + recent->lower : u_tolower(c)));
}

// NFC, then lower case.
std::string normalise(std::string_view text) {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* nfc = icu::Normalizer2::getNFCInstance(status);
  std::string composed;
  icu::StringByteSink<std::string> sink(&composed);
  if (U_SUCCESS(status)) {
    const icu::StringPiece source(text.data(), static_cast<int32_t>(text.size()));
    nfc->normalizeUTF8(0, source, sink, nullptr, status);
  }
  if (U_FAILURE(status)) {
    throw FormatError({"Unicode normalisation (ICU)", u_errorName(status), "NFC data", "reinstall the ICU library"});
  }
  std::string lower;
  lower.reserve(composed.size());
  for (size_t at = 0; at < composed.size();) append_lower(lower, next_code_point(composed, at));
  return lower;
}

// The end of the word that starts at `begin`: a contraction suffix, a run of letters, one number, or a run of others.
size_t word_end(std::string_view text, size_t begin, Kind kind) {
  for (const std::string_view suffix : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
    if (text.substr(begin).starts_with(suffix)) return begin + suffix.size();
  }
  size_t end = begin;
  next_code_point(text, end);
  while (kind != Kind::kNumber && end < text.size()) {
    size_t next = end;
    if (kind_of(next_code_point(text, next)) != kind) break;
    end = next;
  }
  return end;
}

}  // namespace

ClipTokenizer::ClipTokenizer(const ClipVocabulary& vocabulary)
    : added_(vocabulary.added),
      bos_(vocabulary.bos),
      eos_(vocabulary.eos),
      pad_(vocabulary.pad),
      max_length_(vocabulary.max_length) {
  if (max_length_ < 2) {
    throw FormatError({"CLIP tokenizer: model_max_length", fmt::format("{}", max_length_), "at least 2", ""});
  }
  const auto id_of = [&](const std::string& token) {
    const auto found = vocabulary.ids.find(token);
    return found == vocabulary.ids.end() ? -1 : found->second;
  };
  const std::array<std::string, 256> alphabet = byte_alphabet();
  for (size_t byte = 0; byte < 256; ++byte) {
    const int32_t inside = id_of(alphabet[byte]);
    const int32_t last = id_of(alphabet[byte] + "</w>");
    byte_ids_[byte] = inside < 0 ? vocabulary.unknown : inside;
    last_byte_ids_[byte] = last < 0 ? vocabulary.unknown : last;
  }
  for (size_t rank = 0; rank < vocabulary.merges.size(); ++rank) {
    const auto& [left, right] = vocabulary.merges[rank];
    const int32_t left_id = id_of(left);
    const int32_t right_id = id_of(right);
    const int32_t merged = id_of(left + right);
    if (left_id < 0 || right_id < 0 || merged < 0) {
      throw FormatError({"CLIP tokenizer: merges", fmt::format("merge {} '{} {}'", rank + 1, left, right),
                         "both parts and their joined token in the vocabulary",
                         "use vocab.json and merges.txt of the same model"});
    }
    merges_[pair_key(left_id, right_id)] = {static_cast<uint32_t>(rank), merged};
  }
}

const ClipTokenizer::Merge* ClipTokenizer::find_merge(int32_t left, int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

// Joins the lowest-ranked pair, leftmost first, until no pair has a rank. A heap keeps long words n log n.
void ClipTokenizer::encode_word(std::string_view word, std::vector<int32_t>& ids) const {
  struct Symbol {
    int32_t id;
    int64_t previous;
    int64_t next;
    bool alive;
  };
  struct Candidate {
    uint32_t rank;
    int64_t left;
    int32_t id;
    bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
  };
  const auto size = static_cast<int64_t>(word.size());
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (int64_t i = 0; i < size; ++i) {
    const auto byte = static_cast<uint8_t>(word[static_cast<size_t>(i)]);
    const bool last = i + 1 == size;
    symbols.push_back({last ? last_byte_ids_[byte] : byte_ids_[byte], i - 1, last ? -1 : i + 1, true});
  }
  const auto symbol = [&](int64_t i) -> Symbol& { return symbols[static_cast<size_t>(i)]; };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto offer = [&](int64_t left) {
    if (left < 0 || symbol(left).next < 0) return;
    const Merge* merge = find_merge(symbol(left).id, symbol(symbol(left).next).id);
    if (merge) candidates.push({merge->rank, left, merge->id});
  };
  for (int64_t i = 0; i + 1 < size; ++i) offer(i);
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Symbol& left = symbol(best.left);
    if (!left.alive || left.next < 0) continue;
    Symbol& right = symbol(left.next);
    const Merge* merge = find_merge(left.id, right.id);
    if (!merge || merge->id != best.id) continue;  // a neighbour changed since the candidate was offered
    left.id = best.id;
    left.next = right.next;
    right.alive = false;
    if (left.next >= 0) symbol(left.next).previous = best.left;
    offer(left.previous);
    offer(best.left);
  }
  for (int64_t i = size ? 0 : -1; i >= 0; i = symbol(i).next) ids.push_back(symbol(i).id);
}

void ClipTokenizer::encode_text(std::string_view text, std::vector<int32_t>& ids) const {
  for (size_t at = 0; at < text.size();) {
    size_t next = at;
    const Kind kind = kind_of(next_code_point(text, next));
    if (kind != Kind::kSpace) {
      next = word_end(text, at, kind);
      encode_word(text.substr(at, next - at), ids);
    }
    at = next;
  }
}

std::vector<int32_t> ClipTokenizer::encode(std::string_view prompt) const {
  const std::string text = valid_utf8(prompt);
  std::vector<int32_t> ids{bos_};
  for (const PromptPart& written : split_added(text, added_, false)) {
    if (written.id >= 0) {
      ids.push_back(written.id);
      continue;
    }
    const std::string normalised = normalise(written.text);
    for (const PromptPart& part : split_added(normalised, added_, true)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else {
        encode_text(part.text, ids);
      }
    }
  }
  ids.resize(std::min(ids.size(), static_cast<size_t>(max_length_) - 1));
  ids.push_back(eos_);
  return ids;
}

std::vector<int32_t> ClipTokenizer::encode_padded(std::string_view prompt) const {
  std::vector<int32_t> ids = encode(prompt);
  ids.resize(static_cast<size_t>(max_length_), pad_);
  return ids;
}

}  // namespace squareq
