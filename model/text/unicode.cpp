#include "model/text/unicode.h"

#include <fmt/format.h>
#include <unicode/uchar.h>

#include <algorithm>

#include "kernels/base/error.h"

namespace squareq {
namespace {

size_t begin_of_trailing_space(std::string_view text, size_t floor) {
  size_t begin = text.size();
  while (begin > floor) {
    size_t previous = begin - 1;
    while (previous > floor && (static_cast<uint8_t>(text[previous]) & 0xC0u) == 0x80u) --previous;
    size_t at = previous;
    if (!u_isUWhiteSpace(static_cast<UChar32>(next_code_point(text, at)))) break;
    begin = previous;
  }
  return begin;
}

size_t end_of_leading_space(std::string_view text, size_t at) {
  while (at < text.size()) {
    size_t next = at;
    if (!u_isUWhiteSpace(static_cast<UChar32>(next_code_point(text, next)))) break;
    at = next;
  }
  return at;
}

// Bytes of the valid UTF-8 sequence that the (non-empty) text starts with; 0 if it starts with none.
size_t sequence_length(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0}; };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0u) != 0x80u) return 0;
  }
  const bool overlong = (lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xF0 && byte(1) < 0x90);
  const bool surrogate = lead == 0xED && byte(1) > 0x9F;
  const bool too_large = lead == 0xF4 && byte(1) > 0x8F;
  return overlong || surrogate || too_large ? 0 : length;
}

}  // namespace

std::string valid_utf8(std::string_view text) {
  constexpr size_t kLimit = size_t{1} << 28;  // the Unicode library counts in int32
  if (text.size() > kLimit) {
    throw FormatError({"prompt", fmt::format("{} bytes", text.size()), fmt::format("at most {} bytes", kLimit), ""});
  }
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t length = sequence_length(text.substr(at));
    if (length == 0) {
      out += "\xEF\xBF\xBD";
      ++at;
    } else {
      out.append(text.substr(at, length));
      at += length;
    }
  }
  return out;
}

char32_t next_code_point(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0}; };
  const uint8_t lead = byte(at);
  const size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  char32_t code_point = length == 1 ? lead : lead & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) code_point = (code_point << 6) | (byte(at + i) & 0x3Fu);
  at = std::min(at + length, text.size());
  return code_point;
}

void append_utf8(std::string& out, char32_t code_point) {
  const auto put = [&](char32_t bits) { out += static_cast<char>(static_cast<uint8_t>(bits)); };
  const auto trail = [&](unsigned shift) { put(0x80u | ((code_point >> shift) & 0x3Fu)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0u | (code_point >> 6));
    trail(0);
  } else if (code_point < 0x10000) {
    put(0xE0u | (code_point >> 12));
    trail(6);
    trail(0);
  } else {
    put(0xF0u | (code_point >> 18));
    trail(12);
    trail(6);
    trail(0);
  }
}

std::vector<PromptPart> split_added(std::string_view text, const std::vector<AddedToken>& added, bool normalized) {
  std::string first_bytes;
  for (const AddedToken& token : added) {
    if (token.normalized == normalized && !token.text.empty()) first_bytes += token.text[0];
  }
  std::vector<PromptPart> parts;
  size_t done = 0;
  for (size_t at = 0; !first_bytes.empty() && (at = text.find_first_of(first_bytes, at)) != std::string_view::npos;) {
    const AddedToken* match = nullptr;
    for (const AddedToken& token : added) {
      if (token.normalized == normalized && !token.text.empty() && text.substr(at).starts_with(token.text) &&
          (!match || token.text.size() > match->text.size())) {
        match = &token;
      }
    }
    if (!match) {
      ++at;
      continue;
    }
    const size_t begin = match->strip_left ? begin_of_trailing_space(text.substr(0, at), done) : at;
    if (begin > done) parts.push_back({text.substr(done, begin - done), -1});
    parts.push_back({{}, match->id});
    at += match->text.size();
    if (match->strip_right) at = end_of_leading_space(text, at);
    done = at;
  }
  if (done < text.size()) parts.push_back({text.substr(done), -1});
  return parts;
}

}  // namespace squareq
