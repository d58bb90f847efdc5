#include "model/text/charsmap.h"

#include <fmt/format.h>
#include <unicode/brkiter.h>
#include <unicode/utext.h>

#include <memory>

#include "kernels/base/error.h"
#include "model/text/unicode.h"

namespace squareq {
namespace {

uint32_t read_u32(std::string_view bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value |= uint32_t{static_cast<uint8_t>(bytes[at + i])} << (8 * i);
  return value;
}

[[noreturn]] void refuse(std::string found, std::string expected) {
  throw FormatError({"T5 tokenizer: precompiled_charsmap", std::move(found), std::move(expected), ""});
}

void check_icu(UErrorCode status) {
  if (U_FAILURE(status)) {
    throw FormatError({"grapheme clusters (ICU)", u_errorName(status), "character break data",
                       "reinstall the ICU library with its data"});
  }
}

}  // namespace

Charsmap::Charsmap(std::string_view blob) {
  if (blob.empty()) return;
  if (blob.size() < 4) refuse(fmt::format("{} bytes", blob.size()), "at least 4 bytes");
  const size_t trie_bytes = read_u32(blob, 0);
  if (trie_bytes == 0 || trie_bytes % 4 != 0 || trie_bytes > blob.size() - 4) {
    refuse(fmt::format("a trie of {} bytes in {} bytes", trie_bytes, blob.size()), "whole 4-byte units that fit");
  }
  trie_.reserve(trie_bytes / 4);
  for (size_t at = 4; at < 4 + trie_bytes; at += 4) trie_.push_back(read_u32(blob, at));
  pool_ = blob.substr(4 + trie_bytes);
  if (valid_utf8(pool_) != pool_) refuse("replacements with invalid UTF-8", "UTF-8 text");
}

std::optional<std::string_view> Charsmap::shortest_match(std::string_view text) const {
  const auto offset = [](uint32_t unit) { return (unit >> 10) << ((unit & 0x200u) >> 6); };
  if (trie_.empty()) return std::nullopt;
  uint32_t position = offset(trie_[0]);
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if (byte == 0) return std::nullopt;
    position ^= byte;
    if (position >= trie_.size()) return std::nullopt;
    const uint32_t unit = trie_[position];
    if ((unit & 0x800000FFu) != byte) return std::nullopt;
    position ^= offset(unit);
    if (((unit >> 8) & 1u) == 0) continue;
    const size_t begin = position < trie_.size() ? trie_[position] & 0x7FFFFFFFu : pool_.size() + 1;
    if (begin > pool_.size()) refuse(fmt::format("a replacement at byte {}", begin), "a place inside the pool");
    const std::string_view rest = std::string_view(pool_).substr(begin);
    const std::string_view replacement = rest.substr(0, rest.find('\0'));
    if (!replacement.empty() && (static_cast<uint8_t>(replacement[0]) & 0xC0u) == 0x80u) {
      refuse(fmt::format("a replacement at byte {}, inside a character", begin), "the start of a character");
    }
    return replacement;
  }
  return std::nullopt;
}

void Charsmap::apply_to_cluster(std::string_view cluster, std::string& out) const {
  if (cluster.size() < 6) {
    if (const auto replacement = shortest_match(cluster)) {
      out += *replacement;
      return;
    }
  }
  for (size_t at = 0; at < cluster.size();) {
    const size_t begin = at;
    next_code_point(cluster, at);
    const std::string_view character = cluster.substr(begin, at - begin);
    out += shortest_match(character).value_or(character);
  }
}

std::string Charsmap::apply(std::string_view text) const {
  if (trie_.empty()) return std::string(text);
  UErrorCode status = U_ZERO_ERROR;
  const std::unique_ptr<UText, decltype(&utext_close)> source(
      utext_openUTF8(nullptr, text.data(), static_cast<int64_t>(text.size()), &status), &utext_close);
  check_icu(status);
  const std::unique_ptr<icu::BreakIterator> clusters(
      icu::BreakIterator::createCharacterInstance(icu::Locale::getRoot(), status));
  check_icu(status);
  clusters->setText(source.get(), status);
  check_icu(status);
  std::string out;
  out.reserve(text.size());
  for (int32_t begin = clusters->first(), end = clusters->next(); end != icu::BreakIterator::DONE;
       begin = end, end = clusters->next()) {
    apply_to_cluster(text.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin)), out);
  }
  return out;
}

}  // namespace squareq
