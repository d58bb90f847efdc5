// Latents and text states kept on disk between runs, one safetensors file per record.
//
// A record is found by everything it depends on: the bytes of the picture or caption, the identity of the encoder's
// files, and the settings. A changed input has another key and so another file; nothing stale is ever served.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.h"

namespace squareq {

struct CachedArray {
  DType dtype = DType::F32;  // of the file: F32, F16 or BF16
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

// Named arrays: several latents and masks of one picture, or the text states of one caption.
using Record = std::map<std::string, CachedArray>;

// What a record depends on, as named fields in the order in which they were added.
class CacheKey {
 public:
  explicit CacheKey(std::string kind);  // letters, digits and '-': "latent", "text"

  CacheKey& add(std::string_view name, std::string_view value);  // UTF-8
  CacheKey& add(std::string_view name, std::int64_t value);

  const std::string& text() const { return text_; }  // stored in the record and compared when it is read
  std::string file_name() const;                     // kind, '-', 32 hexadecimal digits of SHA-256 of text()

 private:
  std::string kind_;
  std::string text_;
};

class Cache {
 public:
  // Creates the folder if need be. Throws FileError if it cannot.
  explicit Cache(std::string folder);

  // The record, or nothing if there is none. A record that is truncated, damaged, of another format version or of
  // another key is reported with a warning and treated as absent, so that it is computed again.
  std::optional<Record> load(const CacheKey& key) const;

  // Whether there is a record with this key. Its numbers are not looked at.
  bool contains(const CacheKey& key) const;

  // Path of the key's record, whether it is there or not.
  std::string path_of(const CacheKey& key) const;

  // The record, which is there. Throws FileError if it is not, or damaged.
  Record require(const CacheKey& key) const;

  // Written beside its place and renamed, so an interrupted run leaves a whole record or none. Throws FileError, and
  // NumericError if a value is not finite.
  void store(const CacheKey& key, const Record& record) const;

 private:
  std::string folder_;
};

// What the latents and the mask of one sample depend on. Hashes and identities come from engine/identity.h.
struct LatentInputs {
  std::string image;       // hash of the picture
  std::string vae;         // identity of the autoencoder
  std::int64_t width = 0;  // of the bucket
  std::int64_t height = 0;
  std::string_view mode;  // "sample" or "mean"
  bool mirrored = false;  // whether the mirrored picture's latent is there too
  bool alpha = false;     // transparency is a mask
  std::string mask;       // hash of the mask's file, or empty
  double mask_floor = 0.0;
};
CacheKey latent_key(const LatentInputs& inputs);

// Key of a caption's T5 states and pooled CLIP state; lengths in tokens.
CacheKey text_key(std::string_view caption, const std::string& t5_identity, const std::string& clip_identity,
                  const std::string& tokenizer_identity, std::int64_t t5_length, std::int64_t clip_length);

}  // namespace squareq
