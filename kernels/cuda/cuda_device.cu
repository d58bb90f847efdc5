#include <cstring>
#include <new>

#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_transfers.h"
#include "kernels/cuda/driver_memory.h"
#include "kernels/device.h"

namespace squareq {
namespace cuda {
namespace {

cudaDeviceProp device_properties() {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  return properties;
}

// Null for our own kernels. `chosen` says what it is and why.
std::unique_ptr<CudnnAttention> choose_attention(const DeviceOptions& options, int compute_capability_major,
                                                 cudaStream_t stream, std::string& chosen) {
  using Kernels = DeviceOptions::Kernels;
  constexpr std::int64_t kShortest = 512;  // shorter calls are over before they are worth the building of a plan
  chosen = "portable";
  if (options.attention == Kernels::kPortable) return nullptr;
  // Measured to be faster on Hopper only.
  if (options.attention == Kernels::kAuto && compute_capability_major != 9) return nullptr;
  try {
    auto cudnn = open_cudnn_attention(stream, {.deterministic = options.deterministic,
                                               .shortest = options.attention == Kernels::kAuto ? kShortest : 1});
    chosen = "cuDNN " + cudnn->version() + (options.deterministic ? "" : ", backward not deterministic");
    return cudnn;
  } catch (const ConfigError& e) {
    if (options.attention == Kernels::kCudnn) throw;
    chosen += " (cuDNN would be faster, but: " + e.problem().found + ")";
    return nullptr;
  }
}

class CudaDevice : public Device {
 public:
  explicit CudaDevice(const DeviceOptions& options)
      : others_(driver_memory_in_use().value_or(0)),
        properties_(device_properties()),
        ops_(stream_.get(), options, choose_attention(options, properties_.major, stream_.get(), attention_)),
        transfers_(stream_.get()) {}

  std::string name() const override { return properties_.name; }
  std::string choices() const override { return "attention: " + attention_; }
  std::string identity() const override { return ops_.identity() + ", " + choices(); }
  bool reads_host_memory() const override { return false; }
  Ops& ops() override { return ops_; }
  Transfers& transfers() override { return transfers_; }

  Buffer allocate(std::size_t bytes) override {
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, std::max<std::size_t>(bytes, 1));
    if (status == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());
      throw std::bad_alloc();
    }
    check(status, "cudaMalloc");
    ++allocations_;
    return {static_cast<std::byte*>(memory), [](std::byte* p) { cudaFree(p); }};
  }

  std::int64_t allocations() const override { return allocations_; }

  DeviceMemory memory() const override {
    DeviceMemory memory;
    check(cudaMemGetInfo(&memory.free, &memory.total), "cudaMemGetInfo");
    const std::size_t in_use = memory.total - memory.free;
    memory.ours = in_use - std::min(in_use, others_);
    return memory;
  }

  void upload(const void* from, View to) override {
    if (!to.contiguous()) throw std::logic_error("Device::upload needs a contiguous view");
    transfer(to.data, from, to.bytes(), cudaMemcpyHostToDevice);
  }
  void download(ConstView from, void* to) override {
    if (!from.contiguous()) throw std::logic_error("Device::download needs a contiguous view");
    transfer(to, from.data, from.bytes(), cudaMemcpyDeviceToHost);
  }
  KernelTimes profile(const std::function<void()>& work) override { return ops_.profile(work); }
  Kernels back_to_back(const std::function<void()>& work) override {
    return squareq::cuda::back_to_back(stream_.get(), work);
  }
  void synchronize() override { check(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize"); }

 private:
  // The host side may be gone when the caller goes on, so it is waited for.
  void transfer(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    check(cudaMemcpyAsync(to, from, bytes, kind, stream_.get()), "cudaMemcpyAsync");
    synchronize();
  }

  std::size_t others_;  // bytes in use on the GPU before this process had a context
  cudaDeviceProp properties_;
  StreamHandle stream_;
  std::string attention_;
  CudaOps ops_;
  CudaTransfers transfers_;
  std::int64_t allocations_ = 0;
};

}  // namespace

std::size_t CudaOps::scratch_need(const std::function<void()>& calls) {
  rehearsing_ = true;
  peak_ = 0;
  try {
    calls();
  } catch (...) {
    rehearsing_ = false;
    throw;
  }
  rehearsing_ = false;
  return peak_;
}

KernelTimes CudaOps::profile(const std::function<void()>& work) {
  struct Reset {
    Profile*& current;
    ~Reset() { current = nullptr; }
  };
  Profile profile(stream_);
  const Reset reset{profile_ = &profile};
  work();
  return profile.times();
}

}  // namespace cuda

bool cuda_device_present() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

std::unique_ptr<Device> make_cuda_device(const DeviceOptions& options) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    throw ConfigError({.where = "device",
                       .found = std::string("no usable CUDA device (") + cudaGetErrorString(status) + ")",
                       .expected = "an NVIDIA GPU of compute capability 8.0 or newer with its driver",
                       .advice = "install the driver, or choose the device cpu"});
  }
  return std::make_unique<cuda::CudaDevice>(options);
}

}  // namespace squareq
