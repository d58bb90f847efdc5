#include "io/tokenizer_specials.h"

#include <fmt/format.h>

#include <charconv>
#include <filesystem>

#include "kernels/base/error.h"

namespace squareq {

using nlohmann::json;

std::string tokenizer_path(const TokenizerFiles& files, const std::string& name) {
  return (std::filesystem::path(files.folder) / name).string();
}

json parse_tokenizer_file(const TokenizerFiles& files, const std::string& name) {
  const auto found = files.texts.find(name);
  return found == files.texts.end() ? json() : parse_tokenizer_json(found->second, tokenizer_path(files, name));
}

JsonNode tokenizer_root(const TokenizerFiles& files, const std::string& name, const json& value) {
  return {&value, tokenizer_path(files, name) + ": "};
}

SpecialTokens::SpecialTokens(const TokenizerFiles& files, const JsonNode& tokenizer, FindId find_id)
    : config_json_(parse_tokenizer_file(files, "tokenizer_config.json")),
      map_json_(parse_tokenizer_file(files, "special_tokens_map.json")),
      find_id_(std::move(find_id)),
      config_(tokenizer_root(files, "tokenizer_config.json", config_json_)),
      map_(tokenizer_root(files, "special_tokens_map.json", map_json_)) {
  const JsonNode listed = tokenizer["added_tokens"];
  for (size_t i = 0; listed.present() && i < listed.size(); ++i) add(listed.at(i), listed.at(i)["id"].id());
  const JsonNode decoder = config_["added_tokens_decoder"];
  if (!decoder.present()) return;
  for (const auto& [key, value] : decoder.object().items()) {
    constexpr int32_t kEnd = 1 << 24;
    const JsonNode node(&value, decoder.where() + "." + key);
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id >= kEnd) {
      node.refuse("an id from 0 to 2^24 - 1 as key");
    }
    add(node, id);
  }
}

const AddedToken* SpecialTokens::find_added(const std::string& text) const {
  for (const AddedToken& token : added_) {
    if (token.text == text) return &token;
  }
  return nullptr;
}

void SpecialTokens::add(const JsonNode& node, int32_t id) {
  AddedToken token{.text = node["content"].text(), .id = id};
  if (token.text.empty()) node["content"].refuse("text");
  if (node["single_word"].flag(false)) node["single_word"].refuse("false");
  token.normalized = node["normalized"].flag(!node["special"].flag(true));
  token.strip_left = node["lstrip"].flag(false);
  token.strip_right = node["rstrip"].flag(false);
  if (const auto known = find_id_(token.text); known && *known != id) {
    node.refuse(fmt::format("id {}, which the vocabulary gives this token (not {})", *known, id));
  }
  for (AddedToken& other : added_) {
    if (other.text != token.text) continue;
    if (other.id != id) node.refuse(fmt::format("id {}, as listed before (not {})", other.id, id));
    other = token;
    return;
  }
  added_.push_back(std::move(token));
}

void SpecialTokens::add_by_name(const std::string& text) {
  const auto id = find_id_(text);
  if (id && !text.empty() && !find_added(text)) added_.push_back({.text = text, .id = *id});
}

std::optional<int32_t> SpecialTokens::add_role(const JsonNode& node) {
  const std::string& text = node.is_text() ? node.text() : node["content"].text();
  if (const AddedToken* token = find_added(text)) return token->id;
  const auto id = find_id_(text);
  if (id && node.is_text()) add_by_name(text);
  if (id && !node.is_text()) add(node, *id);
  return id;
}

int32_t SpecialTokens::role(const std::string& name, const std::string& otherwise) {
  for (const JsonNode* file : {&config_, &map_}) {
    const JsonNode node = (*file)[name];
    if (!node.present()) continue;
    if (const auto id = add_role(node)) return *id;
    node.refuse("a token of the vocabulary", "use tokenizer files of one model");
  }
  add_by_name(otherwise);
  const AddedToken* token = find_added(otherwise);
  if (!token) config_[name].refuse(fmt::format("a token, or '{}' in the vocabulary", otherwise));
  return token->id;
}

void SpecialTokens::add_additional() {
  for (const JsonNode* file : {&config_, &map_}) {
    const JsonNode more = (*file)["additional_special_tokens"];
    for (size_t i = 0; more.present() && i < more.size(); ++i) add_role(more.at(i));
  }
}

int32_t SpecialTokens::max_length(int32_t otherwise) const {
  constexpr double kUnlimited = 1 << 20;  // files without a limit hold 1e30
  const JsonNode node = config_["model_max_length"];
  if (!node.present() || node.number() > kUnlimited) return otherwise;
  if (!(node.number() >= 2)) node.refuse("at least 2");
  return node.id();
}

}  // namespace squareq
