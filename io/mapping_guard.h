// A file that is cut, or a disk that fails, while the file is mapped: reading the pages that are gone would end the
// program (SIGBUS). Under a guard they read as zeros, and the guard tells.
#pragma once

#include <cstddef>
#include <span>

namespace squareq {

class MappingGuard {
 public:
  MappingGuard() = default;
  // Of whole pages of this process. Installs the signal's handler first if no guard was there before; there can be a
  // few hundred guards at a time, and what is beyond that is not guarded.
  explicit MappingGuard(std::span<const std::byte> memory);
  ~MappingGuard();
  MappingGuard(MappingGuard&& other) noexcept;
  MappingGuard& operator=(MappingGuard&& other) noexcept;
  MappingGuard(const MappingGuard&) = delete;
  MappingGuard& operator=(const MappingGuard&) = delete;

  bool hit() const;  // were zeros read, by any thread?

 private:
  int place_ = -1;
};

}  // namespace squareq
