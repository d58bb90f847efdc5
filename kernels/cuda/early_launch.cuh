// Kernels that begin before the one before them on the stream has ended (CUDA programming guide, "Programmatic
// dependent launch"), from compute capability 9.0 on; on others each waits for the one before.
#pragma once

namespace squareq::cuda {

// From here on the next kernel may begin, if it was launched so, where this one's blocks have ended.
__device__ inline void let_next_kernel_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Until all kernels before are done, and what they wrote is there.
__device__ inline void wait_for_kernels_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace squareq::cuda
