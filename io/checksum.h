// XXH3-128, the checksum of slabs.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace squareq {

// Of bytes that come one after the other.
class Checksum {
 public:
  Checksum();
  void add(std::span<const std::byte> bytes);
  std::string text() const;  // 32 hex digits

 private:
  struct Free {
    void operator()(void* state) const;
  };
  std::unique_ptr<void, Free> state_;
};

std::string checksum_of(std::span<const std::byte> bytes);
inline constexpr std::size_t kChecksumDigits = 32;

}  // namespace squareq
