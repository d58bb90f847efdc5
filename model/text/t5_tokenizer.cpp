#include "model/text/t5_tokenizer.h"

#include <fmt/format.h>
#include <unicode/uchar.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/base/error.h"
#include "model/text/unicode.h"

namespace squareq {
namespace {

constexpr std::string_view kMark = "\xE2\x96\x81";  // U+2581, stands for the space before a word
constexpr double kUnknownPenalty = 10.0;

bool is_space(char32_t code_point) { return u_isUWhiteSpace(static_cast<UChar32>(code_point)); }

void drop_trailing_space(std::string& text) {
  size_t end = 0;
  for (size_t at = 0; at < text.size();) {
    if (!is_space(next_code_point(text, at))) end = at;
  }
  text.resize(end);
}

// Runs of two or more spaces become one mark; a single space stays.
std::string collapse_spaces(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find_first_not_of(' ', at), text.size());
    if (end - at >= 2) {
      out += kMark;
      at = end;
    } else {
      out += text[at++];
    }
  }
  return out;
}

std::string spaces_to_marks(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == ' ') {
      out += kMark;
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace

T5Tokenizer::T5Tokenizer(T5Vocabulary vocabulary)
    : vocabulary_(std::move(vocabulary)), charsmap_(vocabulary_.charsmap) {
  const std::vector<T5Vocabulary::Piece>& pieces = vocabulary_.pieces;
  const auto check_id = [&](const char* name, int32_t id) {
    if (id < 0 || static_cast<size_t>(id) >= pieces.size()) {
      throw FormatError({fmt::format("T5 tokenizer: {} id", name), fmt::format("{}", id),
                         fmt::format("an id of the {} pieces", pieces.size()), ""});
    }
  };
  check_id("unknown", vocabulary_.unknown);
  check_id("end", vocabulary_.eos);
  check_id("padding", vocabulary_.pad);
  if (vocabulary_.max_length < 1) {
    throw FormatError({"T5 tokenizer: model_max_length", fmt::format("{}", vocabulary_.max_length), "at least 1", ""});
  }
  double lowest = std::numeric_limits<double>::infinity();
  for (const T5Vocabulary::Piece& piece : pieces) lowest = std::min(lowest, piece.score);
  unknown_score_ = lowest - kUnknownPenalty;

  std::vector<int32_t> order(pieces.size());
  std::iota(order.begin(), order.end(), 0);
  const auto text_of = [&](int32_t id) -> const std::string& { return pieces[static_cast<size_t>(id)].text; };
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const int compared = text_of(a).compare(text_of(b));
    return compared != 0 ? compared < 0 : a > b;  // of equal pieces the last one counts
  });
  for (const int32_t id : order) {
    if (!text_of(id).empty() && (sorted_.empty() || text_of(sorted_.back()) != text_of(id))) sorted_.push_back(id);
  }
}

// Best segmentation by total score (Viterbi), added up in double from the word's start; ties go to the earlier start.
void T5Tokenizer::encode_word(std::string_view word, std::vector<int32_t>& ids) const {
  struct Node {
    double score = 0.0;
    int64_t begin = -1;  // -1: no segmentation ends here yet
    int32_t id = 0;
  };
  std::vector<Node> ends(word.size() + 1);
  const auto offer = [&](size_t begin, size_t end, int32_t id, double score) {
    const double total = score + ends[begin].score;
    Node& node = ends[end];
    if (node.begin < 0 || total > node.score) node = {total, static_cast<int64_t>(begin), id};
  };
  for (size_t begin = 0; begin < word.size();) {
    size_t character_end = begin;
    next_code_point(word, character_end);
    bool known = false;
    // Narrow the sorted pieces byte by byte to those that go on like the word.
    auto low = sorted_.begin();
    auto high = sorted_.end();
    for (size_t end = begin; end < word.size(); ++end) {
      const size_t depth = end - begin;
      const auto byte_at_depth = [&](int32_t id) {
        const std::string& text = vocabulary_.pieces[static_cast<size_t>(id)].text;
        return depth < text.size() ? static_cast<int>(static_cast<uint8_t>(text[depth])) : -1;
      };
      const int byte = static_cast<uint8_t>(word[end]);
      low = std::partition_point(low, high, [&](int32_t id) { return byte_at_depth(id) < byte; });
      high = std::partition_point(low, high, [&](int32_t id) { return byte_at_depth(id) <= byte; });
      if (low == high) break;
      const T5Vocabulary::Piece& shortest = vocabulary_.pieces[static_cast<size_t>(*low)];
      if (shortest.text.size() != depth + 1) continue;
      offer(begin, end + 1, *low, shortest.score);
      known = known || end + 1 == character_end;
    }
    if (!known) offer(begin, character_end, vocabulary_.unknown, unknown_score_);
    begin = character_end;
  }
  std::vector<int32_t> reversed;
  for (size_t end = word.size(); end > 0; end = static_cast<size_t>(ends[end].begin)) {
    const int32_t id = ends[end].id;
    if (id != vocabulary_.unknown || reversed.empty() || reversed.back() != id) reversed.push_back(id);
  }
  ids.insert(ids.end(), reversed.rbegin(), reversed.rend());
}

// Marks spaces and the beginning, then cuts before each mark.
void T5Tokenizer::encode_marked(std::string text, bool first, std::vector<int32_t>& ids) const {
  text = spaces_to_marks(text);
  const bool wanted = vocabulary_.prefix == T5Vocabulary::Prefix::kAlways ||
                      (vocabulary_.prefix == T5Vocabulary::Prefix::kFirst && first);
  if (wanted && !text.starts_with(kMark)) text.insert(0, kMark);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(kMark, begin + 1), text.size());
    encode_word(std::string_view(text).substr(begin, end - begin), ids);
    begin = end;
  }
}

std::string T5Tokenizer::normalise(std::string_view text) const {
  std::string out = charsmap_.apply(text);
  if (vocabulary_.strip_right) drop_trailing_space(out);
  return vocabulary_.collapse_spaces ? collapse_spaces(out) : out;
}

void T5Tokenizer::encode_text(std::string_view text, bool first, std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  if (!vocabulary_.split_whitespace) {
    encode_marked(std::string(text), first, ids);
    return;
  }
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at;
    if (!is_space(next_code_point(text, at))) continue;
    if (end > begin) encode_marked(std::string(text.substr(begin, end - begin)), first, ids);
    begin = at;
  }
  if (begin < text.size()) encode_marked(std::string(text.substr(begin)), first, ids);
}

std::vector<int32_t> T5Tokenizer::encode(std::string_view prompt, int32_t max_length) const {
  const std::string text = valid_utf8(prompt);
  std::vector<int32_t> ids;
  for (const PromptPart& written : split_added(text, vocabulary_.added, false)) {
    if (written.id >= 0) {
      ids.push_back(written.id);
      continue;
    }
    bool first = written.text.data() == text.data();
    const std::string normalised = normalise(written.text);
    for (const PromptPart& part : split_added(normalised, vocabulary_.added, true)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else {
        encode_text(part.text, first, ids);
      }
      first = false;
    }
  }
  const int32_t limit = max_length > 0 ? max_length : vocabulary_.max_length;
  ids.resize(std::min(ids.size(), static_cast<size_t>(limit) - 1));
  ids.push_back(vocabulary_.eos);
  return ids;
}

std::vector<int32_t> T5Tokenizer::pad(std::vector<int32_t> ids, int32_t max_length) const {
  const auto length = static_cast<size_t>(max_length > 0 ? max_length : vocabulary_.max_length);
  if (ids.size() < length) ids.resize(length, vocabulary_.pad);
  return ids;
}

}  // namespace squareq
