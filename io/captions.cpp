#include "io/captions.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "io/file.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

namespace fs = std::filesystem;

// Offset of the first byte that does not belong to valid UTF-8 (RFC 3629: shortest forms, no surrogates, up to
// U+10FFFF).
std::optional<std::size_t> first_invalid_utf8(std::string_view text) {
  const auto byte = [&](std::size_t i) -> unsigned {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U;
  };
  const auto follows = [&](std::size_t i, unsigned low = 0x80, unsigned high = 0xBF) {
    return byte(i) >= low && byte(i) <= high;
  };
  for (std::size_t i = 0; i < text.size();) {
    const unsigned lead = byte(i);
    std::size_t length = 0;
    if (lead < 0x80) {
      length = 1;
    } else if (lead >= 0xC2 && lead <= 0xDF) {
      length = follows(i + 1) ? 2 : 0;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
      const bool second = follows(i + 1, lead == 0xE0 ? 0xA0 : 0x80, lead == 0xED ? 0x9F : 0xBF);
      length = second && follows(i + 2) ? 3 : 0;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
      const bool second = follows(i + 1, lead == 0xF0 ? 0x90 : 0x80, lead == 0xF4 ? 0x8F : 0xBF);
      length = second && follows(i + 2) && follows(i + 3) ? 4 : 0;
    }
    if (length == 0) return i;
    i += length;
  }
  return std::nullopt;
}

std::string trimmed(std::string_view text) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  constexpr std::string_view kSpace = " \t\r\n\f\v";
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  const std::size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(kSpace) - begin + 1));
}

void check_length(const std::string& where, std::uintmax_t bytes) {
  if (bytes <= static_cast<std::uintmax_t>(kCaptionLimit)) return;
  throw FormatError(
      {where, fmt::format("a caption of {} bytes", bytes), fmt::format("at most {} bytes", kCaptionLimit), ""});
}

}  // namespace

std::string read_caption(const std::string& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  if (!error) check_length(path, size);
  const std::string text = read_text(path);
  check_length(path, text.size());
  if (const auto offset = first_invalid_utf8(text)) {
    throw FormatError({path,
                       fmt::format("byte 0x{:02X} at offset {}, which is not UTF-8",
                                   static_cast<unsigned char>(text[*offset]), *offset),
                       "UTF-8 text", "save the caption as UTF-8"});
  }
  return trimmed(text);
}

std::map<std::string, std::string> read_caption_table(const std::string& path) {
  const std::string text = read_text(path);
  std::map<std::string, std::string> captions;
  std::size_t number = 0;
  for (std::size_t begin = 0; begin < text.size(); ++number) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    if (trimmed(line).empty()) continue;
    const std::string where = fmt::format("{}: line {}", path, number + 1);
    const auto json = nlohmann::json::parse(line, nullptr, false);
    const auto string_at = [&](const char* name) -> const std::string* {
      const auto entry = json.is_object() ? json.find(name) : json.end();
      return entry != json.end() && entry->is_string() ? entry->get_ptr<const std::string*>() : nullptr;
    };
    const std::string* file = string_at("file_name");
    const std::string* caption = string_at("text") != nullptr ? string_at("text") : string_at("caption");
    if (file == nullptr || caption == nullptr) {
      throw FormatError({where, "no caption", R"({"file_name": "a.png", "text": "what it shows"})", ""});
    }
    check_length(where, caption->size());
    if (!captions.emplace(*file, trimmed(*caption)).second) {
      throw FormatError({where, fmt::format("a second caption of '{}'", *file), "one for each picture", ""});
    }
  }
  return captions;
}

}  // namespace squareq
