#include "io/token_cases.h"

#include "io/file.h"
#include "io/tokenizer_json.h"

namespace squareq {
namespace {

std::vector<int32_t> read_ids(const JsonNode& node) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < node.size(); ++i) ids.push_back(node.at(i).id());
  return ids;
}

}  // namespace

std::vector<TokenCase> read_token_cases(const std::string& path) {
  const nlohmann::json document = parse_tokenizer_json(read_text(path), path);
  const JsonNode root(&document, path + ": ");
  std::vector<TokenCase> cases;
  for (size_t i = 0; i < root.size(); ++i) {
    const JsonNode entry = root.at(i);
    cases.push_back({entry["text"].text(), read_ids(entry["t5"]), read_ids(entry["clip"])});
  }
  return cases;
}

}  // namespace squareq
