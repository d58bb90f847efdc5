// Rates of this machine: matrix products, one block, one training step.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/device.h"

namespace squareq::bench {

struct SpeedOptions {
  std::string slab;  // of the transformer
  std::int64_t batch = 8;
  std::int64_t text = 32;           // tokens
  std::int64_t rows = 8, cols = 8;  // grid of image tokens
  std::int64_t rank = 8;
  std::string targets = "attention+mlp";
  bool checkpointing = false;
  bool prepared = false;  // copies of the blocks' weights as products read them
  double budget = 0.0;    // GiB; 0: all weights on the device, no plan
  std::string device = "auto";
  DeviceOptions compute;
  int repeats = 9;
  int threads = 0;
  bool json = false;
};

// OpenBLAS alone: the product of two random float32 matrices of size n, median GFLOP/s with `threads` threads.
double gemm_rate(std::int64_t n, int threads, int repeats);

// Forward and backward of the transformer's stages, by kind, on random inputs.
int run_block(const SpeedOptions& options);
// A whole training step (forward, backward, optimizer) on random inputs; its rate counts matrix products only. On the
// CPU it is compared with gemm_rate(2048) measured in the same run.
int run_step(const SpeedOptions& options);

}  // namespace squareq::bench
