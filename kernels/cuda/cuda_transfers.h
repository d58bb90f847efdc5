// Transfers on CUDA streams.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/check.h"
#include "kernels/transfers.h"

namespace squareq::cuda {

class StreamHandle {
 public:
  StreamHandle() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"); }
  ~StreamHandle() { cudaStreamDestroy(stream_); }
  StreamHandle(const StreamHandle&) = delete;
  StreamHandle& operator=(const StreamHandle&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaTransfers : public Transfers {
 public:
  explicit CudaTransfers(cudaStream_t compute) : compute_(compute) {}

  std::unique_ptr<Event> make_event(bool timed) override;
  void copy(const std::byte* from, std::byte* to, std::size_t bytes) override;
  void record(Event& event, Stream stream) override;
  void wait(Stream stream, const Event& event) override;
  void wait(const Event& event) override;
  double seconds(const Event& from, const Event& to) const override;
  Buffer allocate_pinned(std::size_t bytes) override;
  std::unique_ptr<Registration> register_memory(std::span<const std::byte> memory) override;

 private:
  cudaStream_t of(Stream stream) const { return stream == Stream::kCompute ? compute_ : copies_.get(); }

  cudaStream_t compute_;
  StreamHandle copies_;
};

}  // namespace squareq::cuda
