// Stands in for the CUDA backend in a build without it.
#include "kernels/base/error.h"
#include "kernels/device.h"
#include "kernels/product_times.h"

namespace squareq {
namespace {

[[noreturn]] void refuse() {
  throw ConfigError({.where = "device",
                     .found = "cuda",
                     .expected = "cpu",
                     .advice = "this build has no CUDA backend; choose the device cpu"});
}

}  // namespace

std::unique_ptr<Device> make_cuda_device(const DeviceOptions&) { refuse(); }

ProductTimes time_cuda_product(const ProductShape&, int, const std::vector<std::function<double()>>&) { refuse(); }

bool cuda_device_present() { return false; }

}  // namespace squareq
