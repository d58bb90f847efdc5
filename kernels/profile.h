// Where the time of a device goes, by family of kernels.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace squareq {

enum class KernelFamily : std::uint8_t {
  kLinear,      // the products with frozen weights
  kConversion,  // weights expanded, activations quantised
  kAdapter,     // low-rank products, forward and backward
  kAttention,
  kElementwise,  // norms, RoPE, activation functions, gates
  kFewRows,      // linears on few rows: conditioning and modulation, with their adapters
  kOptimizer,    // AdamW and the norm of the gradients
  kCopy,         // copies, fills, losses
  kOther,        // no operation under way, or one of none of these families
};
inline constexpr std::size_t kKernelFamilies = 9;

struct FamilyTime {
  double seconds = 0.0;
  // What the operations of the family had to do at least: floating-point operations in products with weights and in
  // attention, bytes of device memory in all others.
  double work = 0.0;
};
using KernelTimes = std::array<FamilyTime, kKernelFamilies>;

inline bool counts_operations(KernelFamily family) {
  return family == KernelFamily::kLinear || family == KernelFamily::kAttention;
}
const char* name_of(KernelFamily family);

}  // namespace squareq
