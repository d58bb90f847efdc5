#include "kernels/cuda/cuda_transfers.h"

#include <new>

namespace squareq::cuda {
namespace {

class CudaEvent : public Event {
 public:
  // Waiting threads sleep: readers would else keep as many cores busy as there are of them.
  explicit CudaEvent(bool timed) {
    check(cudaEventCreateWithFlags(&event_, cudaEventBlockingSync | (timed ? 0U : cudaEventDisableTiming)),
          "cudaEventCreate");
  }
  ~CudaEvent() override { cudaEventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

cudaEvent_t handle(const Event& event) { return static_cast<const CudaEvent&>(event).get(); }

class CudaRegistration : public Registration {
 public:
  explicit CudaRegistration(void* memory) : memory_(memory) {}
  ~CudaRegistration() override { cudaHostUnregister(memory_); }
  CudaRegistration(const CudaRegistration&) = delete;
  CudaRegistration& operator=(const CudaRegistration&) = delete;

 private:
  void* memory_;
};

}  // namespace

std::unique_ptr<Event> CudaTransfers::make_event(bool timed) { return std::make_unique<CudaEvent>(timed); }

void CudaTransfers::copy(const std::byte* from, std::byte* to, std::size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, copies_.get()), "cudaMemcpyAsync");
}

void CudaTransfers::record(Event& event, Stream stream) {
  check(cudaEventRecord(handle(event), of(stream)), "cudaEventRecord");
}

void CudaTransfers::wait(Stream stream, const Event& event) {
  check(cudaStreamWaitEvent(of(stream), handle(event)), "cudaStreamWaitEvent");
}

void CudaTransfers::wait(const Event& event) { check(cudaEventSynchronize(handle(event)), "cudaEventSynchronize"); }

double CudaTransfers::seconds(const Event& from, const Event& to) const {
  float milliseconds = 0.0F;
  check(cudaEventElapsedTime(&milliseconds, handle(from), handle(to)), "cudaEventElapsedTime");
  return static_cast<double>(milliseconds) * 1e-3;
}

Buffer CudaTransfers::allocate_pinned(std::size_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMallocHost(&memory, bytes);
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    throw std::bad_alloc();
  }
  check(status, "cudaMallocHost");
  return {static_cast<std::byte*>(memory), [](std::byte* p) { cudaFreeHost(p); }};
}

std::unique_ptr<Registration> CudaTransfers::register_memory(std::span<const std::byte> memory) {
  void* begin = const_cast<std::byte*>(memory.data());
  if (cudaHostRegister(begin, memory.size(), cudaHostRegisterReadOnly) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  return std::make_unique<CudaRegistration>(begin);
}

}  // namespace squareq::cuda
