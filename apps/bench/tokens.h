// Our token ids against recorded ones.
#pragma once

#include <string>

namespace squareq::bench {

// squareq-bench tokens: compares the ids that our tokenizers give with recorded ones.
// model_dir is a diffusers-layout folder (tokenizer/, tokenizer_2/), file a JSON array of {"text", "t5", "clip"}.
// Prints each mismatch and a summary, or with `json` one JSON object. Returns 0, or 1 when a prompt differs.
// Throws Error when a file cannot be read.
int run_tokens(const std::string& model_dir, const std::string& file, bool json);

}  // namespace squareq::bench
