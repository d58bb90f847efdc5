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

  CacheKey& add(std::string_view name, std::string_view value);
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

  // Written beside its place and renamed, so an interrupted run leaves a whole record or none. Throws FileError.
  void store(const CacheKey& key, const Record& record) const;

 private:
  std::string folder_;
};

// SHA-256 of bytes, 64 hexadecimal digits.
std::string content_hash(std::string_view bytes);

// SHA-256 of a whole file, for pictures. Throws FileError.
std::string file_hash(const std::string& path);

// Identity of the files of a model part, quick for large ones. A file gives SHA-256 over its size and
//   - all of its bytes if it is smaller than 64 MiB;
//   - else its first 64 MiB / 16 = 4 MiB (a safetensors header lies there) and 64 pages of 64 KiB spread evenly over
//     the rest, the last one ending with the file.
// A folder gives SHA-256 over the relative names and identities of the files under it, in order of their names; hidden
// files are ignored and links to folders are not followed. Throws FileError.
std::string model_identity(const std::string& path);

// Key of a picture's latents; mode is "sample" or "mean".
CacheKey latent_key(const std::string& image_hash, const std::string& vae_identity, std::int64_t width,
                    std::int64_t height, std::string_view mode);

// Key of a caption's T5 states and pooled CLIP state; lengths in tokens.
CacheKey text_key(std::string_view caption, const std::string& t5_identity, const std::string& clip_identity,
                  const std::string& tokenizer_identity, std::int64_t t5_length, std::int64_t clip_length);

}  // namespace squareq
