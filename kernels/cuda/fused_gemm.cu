#include "kernels/cuda/fused_gemm.h"

namespace squareq::cuda {

bool fused_gemm_supports(const FusedGemm& gemm, TensorCores cores) {
  return cores == TensorCores::kSm90 ? fused_gemm_sm90_supports(gemm) : fused_gemm_sm80_supports(gemm);
}

void fused_gemm(const FusedGemm& gemm, TensorCores cores, cudaStream_t stream) {
  if (cores == TensorCores::kSm90) return fused_gemm_sm90(gemm, stream);
  fused_gemm_sm80(gemm, stream);
}

}  // namespace squareq::cuda
