#include "apps/bench/tokens.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <vector>

#include "io/token_cases.h"
#include "io/tokenizer_files.h"
#include "model/text/clip_tokenizer.h"
#include "model/text/t5_tokenizer.h"

namespace squareq::bench {
namespace {

using Ids = std::vector<int32_t>;

constexpr int32_t kUncut = std::numeric_limits<int32_t>::max();  // recorded T5 ids are not truncated

std::string printable(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out;
}

std::string id_at(const Ids& ids, size_t i) { return i < ids.size() ? fmt::format("{}", ids[i]) : "the end"; }

// Empty when both are the same.
std::string difference(const char* name, const Ids& ours, const Ids& recorded) {
  if (ours == recorded) return "";
  const auto [mine, theirs] = std::mismatch(ours.begin(), ours.end(), recorded.begin(), recorded.end());
  const auto place = static_cast<size_t>(mine - ours.begin());
  return fmt::format("\n  {}: position {}: ours {}, recorded {} ({} ids, recorded {})", name, place, id_at(ours, place),
                     id_at(recorded, place), ours.size(), recorded.size());
}

}  // namespace

int run_tokens(const std::string& model_dir, const std::string& file, bool json) {
  const ClipTokenizer clip(read_clip_vocabulary(model_dir + "/tokenizer"));
  const T5Tokenizer t5(read_t5_vocabulary(model_dir + "/tokenizer_2"));
  const std::vector<TokenCase> cases = read_token_cases(file);
  std::vector<size_t> mismatches;
  for (size_t i = 0; i < cases.size(); ++i) {
    const TokenCase& recorded = cases[i];
    const std::string differences = difference("T5", t5.encode(recorded.text, kUncut), recorded.t5) +
                                    difference("CLIP", clip.encode(recorded.text), recorded.clip);
    if (differences.empty()) continue;
    mismatches.push_back(i);
    if (!json) fmt::print("prompt {} '{}'{}\n", i, printable(recorded.text), differences);
  }
  if (json) {
    fmt::print("{{\"prompts\": {}, \"mismatches\": {}, \"mismatched_prompts\": [{}]}}\n", cases.size(),
               mismatches.size(), fmt::join(mismatches, ", "));
  } else {
    fmt::print("{} prompts, {} mismatches\n", cases.size(), mismatches.size());
  }
  return mismatches.empty() ? 0 : 1;
}

}  // namespace squareq::bench
