#include "kernels/profile.h"

#include <stdexcept>

namespace squareq {

const char* name_of(KernelFamily family) {
  switch (family) {
    case KernelFamily::kLinear: return "linears";
    case KernelFamily::kConversion: return "expansion";
    case KernelFamily::kAdapter: return "adapters";
    case KernelFamily::kAttention: return "attention";
    case KernelFamily::kElementwise: return "element-wise";
    case KernelFamily::kFewRows: return "modulation";
    case KernelFamily::kOptimizer: return "optimizer";
    case KernelFamily::kCopy: return "copies";
    case KernelFamily::kOther: return "between";
  }
  throw std::logic_error("name_of: kernel family");
}

}  // namespace squareq
