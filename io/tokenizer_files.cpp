#include "io/tokenizer_files.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "io/file.h"
#include "io/tokenizer_json.h"
#include "io/tokenizer_specials.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

using nlohmann::json;

[[noreturn]] void refuse_merge(const std::string& path, size_t line, std::string_view text) {
  throw FormatError({fmt::format("{}: line {}", path, line), fmt::format("'{}'", text.substr(0, 80)),
                     "two tokens with one space between them", "download the tokenizer's files again"});
}

std::pair<std::string, std::string> split_merge(std::string_view text, const std::string& path, size_t line) {
  const size_t space = text.find(' ');
  if (space == std::string_view::npos || space == 0 || space + 1 == text.size() ||
      text.find(' ', space + 1) != std::string_view::npos) {
    refuse_merge(path, line, text);
  }
  return {std::string(text.substr(0, space)), std::string(text.substr(space + 1))};
}

void read_merges(std::string_view text, const std::string& path, ClipVocabulary& vocabulary) {
  for (size_t line = 1; !text.empty(); ++line) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view merge = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (merge.ends_with('\r')) merge.remove_suffix(1);
    if (merge.empty() || (line == 1 && merge.starts_with("#version"))) continue;
    vocabulary.merges.push_back(split_merge(merge, path, line));
  }
}

void read_ids(const JsonNode& node, ClipVocabulary& vocabulary) {
  for (const auto& [token, id] : node.object().items()) {
    vocabulary.ids[token] = JsonNode(&id, fmt::format("{}'{}'", node.where(), token)).id();
  }
}

void read_clip_json(const JsonNode& root, ClipVocabulary& vocabulary) {
  const JsonNode model = root["model"];
  if (model["type"].text() != "BPE") model["type"].refuse("\"BPE\"");
  if (model["end_of_word_suffix"].text() != "</w>") model["end_of_word_suffix"].refuse("\"</w>\"");
  read_ids(model["vocab"], vocabulary);
  const JsonNode merges = model["merges"];
  for (size_t i = 0; i < merges.size(); ++i) {
    const JsonNode merge = merges.at(i);
    if (merge.is_array() && merge.size() == 2) {
      vocabulary.merges.emplace_back(merge.at(0).text(), merge.at(1).text());
    } else {
      vocabulary.merges.push_back(split_merge(merge.text(), merges.where(), i + 1));
    }
  }
}

}  // namespace

TokenizerFiles read_tokenizer_files(const std::string& folder) {
  constexpr uint64_t kLargest = uint64_t{64} << 20;
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    throw FileError({folder, "no such folder", "a folder with tokenizer files", ""});
  }
  TokenizerFiles files{folder, {}};
  for (const char* name : {"vocab.json", "merges.txt", "tokenizer.json", "spiece.model", "tokenizer_config.json",
                           "special_tokens_map.json"}) {
    const std::string path = tokenizer_path(files, name);
    if (!std::filesystem::exists(path, error)) continue;
    const uint64_t size = std::filesystem::file_size(path, error);
    if (!error && size > kLargest) throw FileError({path, fmt::format("{} bytes", size), "at most 64 MiB", ""});
    files.texts[name] = read_text(path);
  }
  return files;
}

ClipVocabulary parse_clip_vocabulary(const TokenizerFiles& files) {
  const auto ids_file = files.texts.find("vocab.json");
  const auto merges_file = files.texts.find("merges.txt");
  ClipVocabulary vocabulary;
  json tokenizer;
  if (ids_file != files.texts.end() && merges_file != files.texts.end()) {
    const json ids = parse_tokenizer_file(files, "vocab.json");
    read_ids(tokenizer_root(files, "vocab.json", ids), vocabulary);
    read_merges(merges_file->second, tokenizer_path(files, "merges.txt"), vocabulary);
  } else if (files.texts.contains("tokenizer.json")) {
    tokenizer = parse_tokenizer_file(files, "tokenizer.json");
    read_clip_json(tokenizer_root(files, "tokenizer.json", tokenizer), vocabulary);
  } else {
    throw FormatError({files.folder, "neither of them", "vocab.json and merges.txt, or tokenizer.json",
                       "copy the model's CLIP tokenizer folder here"});
  }
  const auto find_id = [&](const std::string& text) -> std::optional<int32_t> {
    const auto found = vocabulary.ids.find(text);
    return found == vocabulary.ids.end() ? std::nullopt : std::optional(found->second);
  };
  SpecialTokens specials(files, tokenizer_root(files, "tokenizer.json", tokenizer), find_id);
  vocabulary.bos = specials.role("bos_token", "<|startoftext|>");
  vocabulary.eos = specials.role("eos_token", "<|endoftext|>");
  vocabulary.pad = specials.role("pad_token", "<|endoftext|>");
  vocabulary.unknown = specials.role("unk_token", "<|endoftext|>");
  specials.add_additional();
  vocabulary.max_length = specials.max_length(vocabulary.max_length);
  vocabulary.added = specials.take();
  return vocabulary;
}

ClipVocabulary read_clip_vocabulary(const std::string& folder) {
  return parse_clip_vocabulary(read_tokenizer_files(folder));
}

T5Vocabulary read_t5_vocabulary(const std::string& folder) { return parse_t5_vocabulary(read_tokenizer_files(folder)); }

}  // namespace squareq
