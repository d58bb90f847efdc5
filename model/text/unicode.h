// UTF-8 helpers that both tokenizers share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/vocabulary.h"

namespace squareq {

// The text as valid UTF-8: every byte that does not belong to a valid sequence becomes U+FFFD.
std::string valid_utf8(std::string_view text);

// The code point that starts at `at`, which moves behind it. The text must be valid UTF-8.
char32_t next_code_point(std::string_view text, size_t& at);

void append_utf8(std::string& out, char32_t code_point);

// A part of a prompt: an added token's id, or text between added tokens.
struct PromptPart {
  std::string_view text;  // empty for an added token
  int32_t id = -1;        // -1 for text
};

// Cuts a text at the added tokens whose `normalized` flag is as given: leftmost first, then longest.
// Parts view `text`; empty ones are left out.
std::vector<PromptPart> split_added(std::string_view text, const std::vector<AddedToken>& added, bool normalized);

}  // namespace squareq
