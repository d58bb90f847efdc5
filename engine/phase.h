// Parts of a run whose memory is planned.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>

namespace squareq {

inline double gib(std::size_t bytes) { return static_cast<double>(bytes) / 0x1p30; }

struct PhaseName {
  std::string name;     // "text encoding"
  std::string smaller;  // what to do so that it needs less memory: "lower data.text_length"
};

// What memory is used for.
enum class MemoryUse : std::uint8_t {
  kDriver,       // its context and kernels
  kAdapters,     // with gradients and moments
  kWeights,      // that stay
  kPrepared,     // copies of those, as products read them
  kSlots,        // for weights that stream
  kActivations,  // inputs and outputs too
  kScratch,      // of the operations
};
constexpr std::size_t kMemoryUses = 7;

struct Phase {
  std::string name;
  std::array<std::size_t, kMemoryUses> bytes{};

  std::size_t& operator[](MemoryUse use) { return bytes[static_cast<std::size_t>(use)]; }
  std::size_t operator[](MemoryUse use) const { return bytes[static_cast<std::size_t>(use)]; }
  std::size_t total() const { return std::accumulate(bytes.begin(), bytes.end(), std::size_t{0}); }
};

}  // namespace squareq
