// Stands in for attention by cuDNN in a build without it.
#include "kernels/base/error.h"
#include "kernels/cuda/attention_cudnn.h"

namespace squareq::cuda {

std::unique_ptr<CudnnAttention> open_cudnn_attention(cudaStream_t, const CudnnAttentionOptions&) {
  throw ConfigError({.where = "attention",
                     .found = "a build without cuDNN",
                     .expected = "the headers of cuDNN 9 and of its frontend where squareq is built",
                     .advice = "build again with them (docs/gpu.md), or choose the portable kernels"});
}

}  // namespace squareq::cuda
