// A place to compute: memory, copies to and from the host, and the arithmetic that runs there.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "kernels/base/view.h"
#include "kernels/ops.h"
#include "kernels/profile.h"

namespace squareq {

// A region of device memory, freed with its owner. Aligned to 4096 bytes; content undefined.
using Buffer = std::unique_ptr<std::byte[], std::function<void(std::byte*)>>;

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;
  // Can operations read host memory where it is? If not, weights have to be uploaded.
  virtual bool reads_host_memory() const = 0;
  virtual Ops& ops() = 0;
  virtual Buffer allocate(std::size_t bytes) = 0;  // throws std::bad_alloc
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
};

std::unique_ptr<Device> make_cpu_device(int threads);

// Throws ConfigError saying what is missing where there is no usable CUDA device or no CUDA in this build.
std::unique_ptr<Device> make_cuda_device();

// Does this build have CUDA, and this machine a device and a driver for it?
bool cuda_device_present();

}  // namespace squareq
