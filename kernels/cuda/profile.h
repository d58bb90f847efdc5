// Times of kernel families by events on the stream: an opt-in that costs nothing while it is off.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <vector>

#include "kernels/cuda/timed_event.h"
#include "kernels/device.h"
#include "kernels/profile.h"

namespace squareq::cuda {

class Profile {
 public:
  explicit Profile(cudaStream_t stream);
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  // What follows on the stream belongs to `family`, until leave() gives it back to the family before.
  void enter(KernelFamily family, double work);
  void leave();

  // Waits for the stream. The seconds add up to the time since the profile was made.
  KernelTimes times();

 private:
  struct Mark {
    TimedEvent event;
    KernelFamily family;  // of what follows
  };
  void mark();

  cudaStream_t stream_;
  std::vector<KernelFamily> open_{KernelFamily::kOther};
  std::vector<Mark> marks_;
  KernelTimes times_{};
};

// The kernels launched while it lives belong to a family. A null profile: nothing happens.
class ProfileSpan {
 public:
  ProfileSpan(Profile* profile, KernelFamily family, double work) : profile_(profile) {
    if (profile_ != nullptr) profile_->enter(family, work);
  }
  ~ProfileSpan() {
    if (profile_ != nullptr) profile_->leave();
  }
  ProfileSpan(const ProfileSpan&) = delete;
  ProfileSpan& operator=(const ProfileSpan&) = delete;

 private:
  Profile* profile_;
};

// See Device: records the work as a graph, and runs that.
Device::Kernels back_to_back(cudaStream_t stream, const std::function<void()>& work);

}  // namespace squareq::cuda
