// SentencePiece's precompiled normalisation table: a double-array trie and a pool of replacement strings.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace squareq {

class Charsmap {
 public:
  // blob: u32 trie bytes, the trie's u32 units, NUL-terminated UTF-8 replacements; all little endian.
  // An empty blob changes nothing. Throws FormatError when the sizes do not fit or the pool is not UTF-8.
  explicit Charsmap(std::string_view blob);

  // Replaces per extended grapheme cluster, as Hugging Face does and SentencePiece does not: a cluster of fewer than
  // 6 bytes goes as a whole, by the shortest match at its start; else each code point is looked up alone.
  // The text must be valid UTF-8.
  std::string apply(std::string_view text) const;

 private:
  std::optional<std::string_view> shortest_match(std::string_view text) const;
  void apply_to_cluster(std::string_view cluster, std::string& out) const;

  std::vector<uint32_t> trie_;
  std::string pool_;
};

}  // namespace squareq
