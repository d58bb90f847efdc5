// Any bytes as tokenizer files and prompt: they are refused with a FormatError or give ids.
// The first byte says which main files follow; then come prompt, tokenizer_config.json and the main files, each but the
// last ended by a zero byte.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "io/tokenizer_files.h"
#include "kernels/base/error.h"
#include "model/text/clip_tokenizer.h"
#include "model/text/t5_tokenizer.h"

namespace {

std::string next(std::string& rest) {
  const std::size_t end = rest.find('\0');
  std::string part = rest.substr(0, end);
  rest = end == std::string::npos ? "" : rest.substr(end + 1);
  return part;
}

void use_clip(const squareq::TokenizerFiles& files, const std::string& prompt) {
  const squareq::ClipTokenizer tokenizer(squareq::parse_clip_vocabulary(files));
  const auto length = static_cast<std::size_t>(tokenizer.max_length());
  if (tokenizer.encode(prompt).size() > length) std::abort();
}

void use_t5(const squareq::TokenizerFiles& files, const std::string& prompt) {
  const squareq::T5Tokenizer tokenizer(squareq::parse_t5_vocabulary(files));
  if (tokenizer.encode(prompt, 64).size() > 64) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  std::string rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  squareq::TokenizerFiles files{"folder", {}};
  const bool clip = data[0] % 2 == 0;
  const std::string prompt = next(rest);
  files.texts["tokenizer_config.json"] = next(rest);
  if (files.texts["tokenizer_config.json"].empty()) files.texts.erase("tokenizer_config.json");
  if (data[0] % 4 == 0) {
    files.texts["vocab.json"] = next(rest);
    files.texts["merges.txt"] = rest;
  } else {
    files.texts[data[0] % 4 == 1 ? "spiece.model" : "tokenizer.json"] = rest;
  }
  try {
    clip ? use_clip(files, prompt) : use_t5(files, prompt);
  } catch (const squareq::FormatError&) {
  }
  return 0;
}
