// Hashes that tell whether two inputs are the same.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "io/slab.h"

namespace squareq {

// SHA-256 of bytes that come in pieces.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void add(std::string_view bytes);
  std::string hex();  // 64 hexadecimal digits; nothing can be added afterwards

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

// SHA-256 of bytes, 64 hexadecimal digits.
std::string content_hash(std::string_view bytes);

// SHA-256 of a whole file, for pictures. Throws FileError.
std::string file_hash(const std::string& path);

// Identity of the files of a model part, quick for large ones. A file gives SHA-256 over its size and
//   - all of its bytes if it is smaller than 64 MiB;
//   - else its first 4 MiB, where a safetensors header lies, and 64 pages of 64 KiB spread evenly over the rest, the
//     last one ending with the file.
// A folder gives SHA-256 over the relative names and identities of the files under it, in order of their names; hidden
// files are ignored and links to folders are not followed. Throws FileError.
std::string model_identity(const std::string& path);

// Of a slab, from its metadata: they hold checksums of all its blocks.
std::string slab_identity(const Slab& slab);

}  // namespace squareq
