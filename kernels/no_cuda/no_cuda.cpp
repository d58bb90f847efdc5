// Stands in for the CUDA backend in a build without it.
#include "kernels/base/error.h"
#include "kernels/device.h"

namespace squareq {

std::unique_ptr<Device> make_cuda_device(const DeviceOptions&) {
  throw ConfigError({.where = "device",
                     .found = "cuda",
                     .expected = "cpu",
                     .advice = "this build has no CUDA backend; choose the device cpu"});
}

bool cuda_device_present() { return false; }

}  // namespace squareq
