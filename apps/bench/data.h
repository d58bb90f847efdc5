// What training reads, recorded for comparison with an independent reading of the rules in docs/data.md.
#pragma once

#include <cstdint>
#include <string>

namespace squareq::bench {

// Trains for `steps` steps and writes a safetensors file. For each step s its last batch: `s.noisy`, `s.velocity`
// [B, tokens, features], `s.sigma` [B] and `s.text` [B, text tokens, width].
int run_data(const std::string& config, std::int64_t steps, const std::string& output);

}  // namespace squareq::bench
