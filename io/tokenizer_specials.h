// The special tokens that a tokenizer folder's files announce.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "io/tokenizer_files.h"
#include "io/tokenizer_json.h"
#include "kernels/base/vocabulary.h"

namespace squareq {

std::string tokenizer_path(const TokenizerFiles& files, const std::string& name);

// The parsed file; null when it is not there. Throws FormatError.
nlohmann::json parse_tokenizer_file(const TokenizerFiles& files, const std::string& name);

// A node for the whole of a parsed file. `value` must outlive it.
JsonNode tokenizer_root(const TokenizerFiles& files, const std::string& name, const nlohmann::json& value);

// Collects added tokens from tokenizer.json, tokenizer_config.json and special_tokens_map.json (later ones win), and
// answers which token has which role. Contradictions (a token with two ids) throw FormatError.
class SpecialTokens {
 public:
  using FindId = std::function<std::optional<int32_t>(const std::string& text)>;

  // find_id looks a token up in the vocabulary proper.
  SpecialTokens(const TokenizerFiles& files, const JsonNode& tokenizer, FindId find_id);

  // The id of the token in a role ("eos_token"), which counts as added from then on. Absent in all files: `otherwise`.
  int32_t role(const std::string& name, const std::string& otherwise);

  // Tokens that only special_tokens_map.json or tokenizer_config.json list, by text.
  void add_additional();

  // Adds a token of the vocabulary, unless it is added or unknown.
  void add_by_name(const std::string& text);

  // model_max_length; `otherwise` when it is absent or stands for "no limit".
  int32_t max_length(int32_t otherwise) const;

  std::vector<AddedToken> take() { return std::move(added_); }

 private:
  const AddedToken* find_added(const std::string& text) const;
  void add(const JsonNode& node, int32_t id);
  std::optional<int32_t> add_role(const JsonNode& node);

  nlohmann::json config_json_;
  nlohmann::json map_json_;
  FindId find_id_;
  JsonNode config_;
  JsonNode map_;
  std::vector<AddedToken> added_;
};

}  // namespace squareq
