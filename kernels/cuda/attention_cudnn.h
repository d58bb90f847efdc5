// Softmax attention by cuDNN.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/ops.h"

namespace squareq::cuda {

// How cuDNN computes calls of one kind: of equal shapes, strides and scale.
struct CudnnPlan {
  std::int64_t workspace = 0;  // bytes of device memory
  std::string name;            // cuDNN's own, of the engine and its settings
};

class CudnnAttention {
 public:
  virtual ~CudnnAttention() = default;

  // The library's, as in "9.19.0".
  virtual std::string version() const = 0;

  // Null for what cuDNN does not compute: masks, biases, more than 128 features a head, views of another type than
  // bfloat16, heads that do not start at multiples of 16 bytes, log_sum_exp with gaps, and what it has no engine for.
  // The first call of a kind builds its plan, the first one that cuDNN's heuristics name; views need no memory behind
  // them.
  virtual const CudnnPlan* plan(const Attention& p) = 0;
  virtual const CudnnPlan* plan(const AttentionBackward& p) = 0;

  // Runs a call that has a plan; `workspace` has as many bytes as the plan says.
  virtual void run(const Attention& p, View workspace) = 0;
  virtual void run(const AttentionBackward& p, View workspace) = 0;
};

struct CudnnAttentionOptions {
  bool deterministic = true;  // the backward gives the same bits every time, the forward does always
  std::int64_t shortest = 1;  // calls on fewer rows have no plan
};

// Throws ConfigError saying what is missing where this build or this machine has no cuDNN.
std::unique_ptr<CudnnAttention> open_cudnn_attention(cudaStream_t stream, const CudnnAttentionOptions& options);

}  // namespace squareq::cuda
