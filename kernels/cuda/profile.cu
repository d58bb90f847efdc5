#include "kernels/cuda/profile.h"

#include "kernels/cuda/check.h"

namespace squareq::cuda {

Profile::Profile(cudaStream_t stream) : stream_(stream) { mark(); }

Profile::~Profile() {
  for (const Mark& mark : marks_) cudaEventDestroy(mark.event);
}

void Profile::mark() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event), "cudaEventCreate");
  marks_.push_back({event, open_.back()});
  check(cudaEventRecord(event, stream_), "cudaEventRecord");
}

void Profile::enter(KernelFamily family, double work) {
  times_[static_cast<std::size_t>(family)].work += work;
  open_.push_back(family);
  mark();
}

void Profile::leave() {
  open_.pop_back();
  mark();
}

KernelTimes Profile::times() {
  mark();
  check(cudaEventSynchronize(marks_.back().event), "cudaEventSynchronize");
  KernelTimes result = times_;
  for (std::size_t i = 0; i + 1 < marks_.size(); ++i) {
    float milliseconds = 0.0F;
    check(cudaEventElapsedTime(&milliseconds, marks_[i].event, marks_[i + 1].event), "cudaEventElapsedTime");
    result[static_cast<std::size_t>(marks_[i].family)].seconds += static_cast<double>(milliseconds) * 1e-3;
  }
  return result;
}

}  // namespace squareq::cuda
