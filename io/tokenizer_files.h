// Tokenizer files of a diffusers-layout model, parsed into the plain structs of kernels/base/vocabulary.h.
#pragma once

#include <map>
#include <string>

#include "kernels/base/vocabulary.h"

namespace squareq {

// The texts of one tokenizer folder by file name; files that are not there are not in the map.
struct TokenizerFiles {
  std::string folder;
  std::map<std::string, std::string> texts;
};

// Reads vocab.json, merges.txt, tokenizer.json, spiece.model, tokenizer_config.json and special_tokens_map.json as far
// as they exist. Throws FileError when the folder does not exist or a file cannot be read or is larger than 64 MiB.
TokenizerFiles read_tokenizer_files(const std::string& folder);

// CLIP, from vocab.json and merges.txt, or else tokenizer.json. Throws FormatError naming file and field.
ClipVocabulary parse_clip_vocabulary(const TokenizerFiles& files);

// T5, from tokenizer.json, or else spiece.model (then with the sentinels <extra_id_n> that tokenizer_config.json
// announces, 100 by default, behind the pieces). Throws FormatError naming file and field.
T5Vocabulary parse_t5_vocabulary(const TokenizerFiles& files);

// Both steps in one.
ClipVocabulary read_clip_vocabulary(const std::string& folder);
T5Vocabulary read_t5_vocabulary(const std::string& folder);

}  // namespace squareq
