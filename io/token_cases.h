// Prompts with the token ids that another implementation gives them (tests/data/golden/tokens.json).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace squareq {

struct TokenCase {
  std::string text;
  std::vector<int32_t> t5;    // with the end token, not padded
  std::vector<int32_t> clip;  // begin to end token, cut at the model's length
};

// Reads a JSON array of {"text", "t5", "clip"}. Throws FileError, FormatError.
std::vector<TokenCase> read_token_cases(const std::string& path);

}  // namespace squareq
