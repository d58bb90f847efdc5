#include <fmt/format.h>
#include <openssl/evp.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <unordered_map>

#include "io/sentencepiece.h"
#include "io/tokenizer_files.h"
#include "io/tokenizer_json.h"
#include "io/tokenizer_specials.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

using nlohmann::json;

constexpr std::string_view kMark = "\xE2\x96\x81";  // U+2581

std::string decode_base64(const JsonNode& node) {
  const std::string& text = node.text();
  std::string out(text.size() / 4 * 3 + 3, '\0');
  const int size = EVP_DecodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                                   reinterpret_cast<const unsigned char*>(text.data()), static_cast<int>(text.size()));
  if (size < 0) node.refuse("base64");
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  out.resize(static_cast<size_t>(size) - std::min(padding, static_cast<size_t>(size)));
  return out;
}

void read_normaliser(const JsonNode& node, T5Vocabulary& vocabulary) {
  const std::string& type = node["type"].text();
  if (type == "Precompiled") {
    const JsonNode charsmap = node["precompiled_charsmap"];
    if (charsmap.present()) vocabulary.charsmap = decode_base64(charsmap);
  } else if (type == "Strip") {
    if (node["strip_left"].flag(false)) node["strip_left"].refuse("false");
    vocabulary.strip_right = node["strip_right"].flag(false);
  } else if (type == "Replace") {
    if (node["pattern"]["Regex"].text() != " {2,}") node["pattern"].refuse("{\"Regex\":\" {2,}\"}");
    if (node["content"].text() != kMark && node["content"].text() != " ") node["content"].refuse("one space or U+2581");
    vocabulary.collapse_spaces = true;
  } else {
    node["type"].refuse("Precompiled, Strip or Replace");
  }
}

void read_pre_tokenizer(const JsonNode& node, T5Vocabulary& vocabulary) {
  const std::string& type = node["type"].text();
  if (type == "WhitespaceSplit") {
    vocabulary.split_whitespace = true;
    return;
  }
  if (type != "Metaspace") node["type"].refuse("Metaspace or WhitespaceSplit");
  if (node["replacement"].text() != kMark) node["replacement"].refuse("U+2581");
  if (!node["split"].flag(true)) node["split"].refuse("true");
  const JsonNode scheme = node["prepend_scheme"];
  if (!scheme.present()) {
    vocabulary.prefix =
        node["add_prefix_space"].flag(true) ? T5Vocabulary::Prefix::kAlways : T5Vocabulary::Prefix::kNever;
  } else if (scheme.text() == "always") {
    vocabulary.prefix = T5Vocabulary::Prefix::kAlways;
  } else if (scheme.text() == "first") {
    vocabulary.prefix = T5Vocabulary::Prefix::kFirst;
  } else if (scheme.text() == "never") {
    vocabulary.prefix = T5Vocabulary::Prefix::kNever;
  } else {
    scheme.refuse("always, first or never");
  }
}

// Visits a step, or the steps of a Sequence in order.
template <typename Read>
void read_steps(const JsonNode& node, const std::string& list, const Read& read) {
  if (!node.present()) return;
  if (node["type"].text() != "Sequence") {
    read(node);
    return;
  }
  const JsonNode steps = node[list];
  for (size_t i = 0; i < steps.size(); ++i) read(steps.at(i));
}

T5Vocabulary read_t5_json(const JsonNode& root) {
  T5Vocabulary vocabulary{.strip_right = false, .collapse_spaces = false, .prefix = T5Vocabulary::Prefix::kNever};
  const JsonNode model = root["model"];
  if (model["type"].text() != "Unigram") model["type"].refuse("\"Unigram\"");
  if (model["byte_fallback"].flag(false)) model["byte_fallback"].refuse("false");
  vocabulary.unknown = model["unk_id"].id();
  const JsonNode pieces = model["vocab"];
  vocabulary.pieces.reserve(pieces.size());
  for (size_t i = 0; i < pieces.size(); ++i) {
    const JsonNode piece = pieces.at(i);
    if (piece.size() != 2) piece.refuse("[piece, score]");
    vocabulary.pieces.push_back({piece.at(0).text(), piece.at(1).number()});
  }
  read_steps(root["normalizer"], "normalizers", [&](const JsonNode& step) { read_normaliser(step, vocabulary); });
  read_steps(root["pre_tokenizer"], "pretokenizers",
             [&](const JsonNode& step) { read_pre_tokenizer(step, vocabulary); });
  if (vocabulary.split_whitespace && vocabulary.prefix != T5Vocabulary::Prefix::kAlways) {
    root["pre_tokenizer"].refuse("WhitespaceSplit together with a Metaspace that marks every word");
  }
  return vocabulary;
}

std::string sentinel(int32_t n) { return fmt::format("<extra_id_{}>", n); }

// Hugging Face puts the sentinels behind the pieces, the highest number first.
int32_t append_sentinels(const TokenizerFiles& files, T5Vocabulary& vocabulary) {
  constexpr int32_t kUsual = 100;
  constexpr int32_t kMost = 1000;
  const json config = parse_tokenizer_file(files, "tokenizer_config.json");
  const JsonNode count = tokenizer_root(files, "tokenizer_config.json", config)["extra_ids"];
  const int32_t sentinels = count.present() ? count.id() : kUsual;
  if (sentinels > kMost) count.refuse(fmt::format("at most {}", kMost));
  for (int32_t n = sentinels; n-- > 0;) vocabulary.pieces.push_back({sentinel(n), 0.0});
  return sentinels;
}

}  // namespace

T5Vocabulary parse_t5_vocabulary(const TokenizerFiles& files) {
  T5Vocabulary vocabulary;
  json tokenizer;
  int32_t sentinels = 0;
  if (files.texts.contains("tokenizer.json")) {
    tokenizer = parse_tokenizer_file(files, "tokenizer.json");
    vocabulary = read_t5_json(tokenizer_root(files, "tokenizer.json", tokenizer));
  } else if (const auto model = files.texts.find("spiece.model"); model != files.texts.end()) {
    vocabulary = parse_sentencepiece(model->second, tokenizer_path(files, "spiece.model"));
    sentinels = append_sentinels(files, vocabulary);
  } else {
    throw FormatError({files.folder, "neither of them", "tokenizer.json or spiece.model",
                       "copy the model's T5 tokenizer folder here"});
  }
  std::unordered_map<std::string, int32_t> ids;
  for (size_t i = 0; i < vocabulary.pieces.size(); ++i) ids[vocabulary.pieces[i].text] = static_cast<int32_t>(i);
  const auto find_id = [&](const std::string& text) -> std::optional<int32_t> {
    const auto found = ids.find(text);
    return found == ids.end() ? std::nullopt : std::optional(found->second);
  };
  SpecialTokens specials(files, tokenizer_root(files, "tokenizer.json", tokenizer), find_id);
  vocabulary.eos = specials.role("eos_token", "</s>");
  vocabulary.pad = specials.role("pad_token", "<pad>");
  specials.role("unk_token", "<unk>");
  specials.add_additional();
  for (int32_t n = 0; n < sentinels; ++n) specials.add_by_name(sentinel(n));
  vocabulary.max_length = specials.max_length(vocabulary.max_length);
  vocabulary.added = specials.take();
  return vocabulary;
}

}  // namespace squareq
