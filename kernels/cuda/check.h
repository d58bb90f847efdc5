// Every CUDA call is checked: a failure becomes an Error that names the call and what the driver says.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <string>

#include "kernels/base/error.h"

namespace squareq::cuda {

// The GPU, its driver or its memory failed.
class DeviceError : public Error {
 public:
  using Error::Error;
};

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw DeviceError({.where = "CUDA device", .found = std::string(what) + ": " + cudaGetErrorString(status)});
}

inline void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError({.where = "cuBLASLt", .found = std::string(what) + ": " + cublasLtGetStatusString(status)});
}

// After a launch: did the configuration fit the device?
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

}  // namespace squareq::cuda
