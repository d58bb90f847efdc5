// A place to compute: memory, copies to and from the host, and the arithmetic that runs there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/base/view.h"
#include "kernels/ops.h"
#include "kernels/profile.h"
#include "kernels/transfers.h"

namespace squareq {

// Memory of a device in bytes, as its driver reports it.
struct DeviceMemory {
  std::size_t total = 0;
  std::size_t free = 0;
  std::size_t ours = 0;  // in use by this process: allocations and what the driver keeps for it
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;
  // How it computes where there was a choice, for people to read; may be empty.
  virtual std::string choices() const = 0;
  // All that its results and times depend on: the hardware, its driver and libraries, and how it was told to compute.
  virtual std::string identity() const = 0;
  // Can operations read host memory where it is? If not, weights have to be uploaded.
  virtual bool reads_host_memory() const = 0;
  virtual Ops& ops() = 0;
  // The device's memory; throws std::bad_alloc.
  virtual Buffer allocate(std::size_t bytes) = 0;
  virtual std::int64_t allocations() const = 0;  // calls of allocate so far
  virtual DeviceMemory memory() const = 0;
  virtual Transfers& transfers() = 0;
  // Host array of to.count() elements of to.dtype into a contiguous view, and back.
  virtual void upload(const void* from, View to) = 0;
  virtual void download(ConstView from, void* to) = 0;
  // Waits until all operations so far are done.
  virtual void synchronize() = 0;
  // Runs `work` and tells where the device's time went; all zeros where it cannot tell.
  virtual KernelTimes profile(const std::function<void()>& work) {
    work();
    return {};
  }
  // How many kernels `work` starts, and how long those take right after each other, without the host in between. They
  // run twice. `work` may not wait for the device. All zeros where a device cannot tell.
  struct Kernels {
    std::int64_t count = 0;
    double seconds = 0.0;
  };
  virtual Kernels back_to_back(const std::function<void()>& work) {
    work();
    return {};
  }
};

std::unique_ptr<Device> make_cpu_device(int threads);

// How a CUDA device computes where there is a choice. What is chosen depends on these, the GPU and the call alone.
struct DeviceOptions {
  enum class Kernels : std::uint8_t { kAuto, kPortable, kCudnn };
  enum class Precision : std::uint8_t { kW8A16, kW8A8 };

  // Kernels of softmax attention: our own, which run everywhere, or cuDNN's for the calls that it can express (plain
  // attention in bfloat16, without mask). kAuto: cuDNN on GPUs where it is faster, if this build and machine have it.
  Kernels attention = Kernels::kAuto;
  // Do two runs give the same bits? Without, cuDNN adds up the gradient of queries in any order, which is faster.
  bool deterministic = true;
  // Products with INT8 weights: the weights in bfloat16, or activations and their gradients in INT8 too, with a scale
  // for each token. Adapters are in bfloat16 either way.
  Precision precision = Precision::kW8A16;
};

// Throws ConfigError saying what is missing where there is no usable CUDA device, no CUDA in this build, or not what
// the options ask for.
std::unique_ptr<Device> make_cuda_device(const DeviceOptions& options = {});

// Does this build have CUDA, and this machine a device and a driver for it?
bool cuda_device_present();

}  // namespace squareq
