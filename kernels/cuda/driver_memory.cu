#include "kernels/cuda/driver_memory.h"

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <memory>

namespace squareq::cuda {
namespace {

// nvmlMemory_v2_t of NVIDIA's management library, which keeps apart what the driver has reserved for itself. Declared
// here because its header comes in a package of its own.
struct NvmlMemory {
  unsigned version = sizeof(NvmlMemory) | 2U << 24U;
  unsigned long long total = 0, reserved = 0, free = 0, used = 0;
};

class Nvml {
 public:
  Nvml() : library_(dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)) {
    if (library_ == nullptr) return;
    const auto init = symbol<int (*)()>("nvmlInit_v2");
    const auto by_bus = symbol<int (*)(const char*, void**)>("nvmlDeviceGetHandleByPciBusId_v2");
    memory_info_ = symbol<int (*)(void*, NvmlMemory*)>("nvmlDeviceGetMemoryInfo_v2");
    shutdown_ = symbol<int (*)()>("nvmlShutdown");
    char bus[32] = {};
    if (init == nullptr || by_bus == nullptr || memory_info_ == nullptr || shutdown_ == nullptr || init() != 0) return;
    started_ = true;
    if (cudaDeviceGetPCIBusId(bus, sizeof bus, 0) != cudaSuccess || by_bus(bus, &gpu_) != 0) gpu_ = nullptr;
  }
  ~Nvml() {
    if (started_) shutdown_();
    if (library_ != nullptr) dlclose(library_);
  }
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  std::optional<std::size_t> in_use() const {
    NvmlMemory memory{};
    if (gpu_ == nullptr || memory_info_(gpu_, &memory) != 0) return std::nullopt;
    return memory.used;
  }

 private:
  template <class Function>
  Function symbol(const char* name) const {
    return reinterpret_cast<Function>(dlsym(library_, name));
  }

  void* library_;
  void* gpu_ = nullptr;
  bool started_ = false;
  int (*memory_info_)(void*, NvmlMemory*) = nullptr;
  int (*shutdown_)() = nullptr;
};

}  // namespace

std::optional<std::size_t> driver_memory_in_use() { return Nvml().in_use(); }

}  // namespace squareq::cuda
