// Rates of single operations of FLUX's blocks, on a device that can tell where its time goes.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/device.h"

namespace squareq::bench {

struct OperationsOptions {
  std::int64_t tokens = 4608;
  std::int64_t rank = 16;
  std::string device = "cuda";
  DeviceOptions compute;
  int repeats = 20;
  bool json = false;
};

// For every operation and family of kernels that it runs: time, and rate of the work that it has to do at least.
int run_operations(const OperationsOptions& options);

}  // namespace squareq::bench
