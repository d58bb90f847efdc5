#include "kernels/cpu/cpu_ops.h"

#include "kernels/cpu/gemm.h"

namespace squareq {

CpuOps::CpuOps(int threads) : pool_(threads), workers_(static_cast<std::size_t>(pool_.size())) {
  use_calling_thread_only();
}

std::unique_ptr<Ops> make_cpu_ops(int threads) { return std::make_unique<CpuOps>(threads); }

}  // namespace squareq
