// What the kernels on images [B, pixels, C] share: values of weights of any floating type, and runs of 8 channels.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/tensor.cuh"

namespace squareq::cuda {

// Weights of few uses, read where they are whatever their type.
struct AnyFloats {
  const std::byte* data;
  DType dtype;

  explicit AnyFloats(const ConstView& v) : data(v.data), dtype(v.dtype) {
    require(dtype == DType::F32 || dtype == DType::BF16 || dtype == DType::F16, "weights must be floating numbers");
  }
  __device__ float operator[](std::int64_t i) const {
    if (dtype == DType::F32) return reinterpret_cast<const float*>(data)[i];
    if (dtype == DType::BF16) return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(data)[i]);
    return __half2float(reinterpret_cast<const __half*>(data)[i]);
  }
};

// N = 8 consecutive values in 16-byte transactions, or one value where channels or alignment do not allow that.
constexpr int kRun = 8;

inline bool in_runs(const ConstView& v) {
  const auto row = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(v.data) % 16) + v.cols % kRun +
                   v.row_stride % kRun + v.batch_stride % kRun;
  return row == 0;
}

template <int N>
__device__ void load_run(const __nv_bfloat16* from, float (&to)[N]) {
  if constexpr (N == kRun) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    const std::uint32_t words[] = {bits.x, bits.y, bits.z, bits.w};
    for (int i = 0; i < N / 2; ++i) {
      to[2 * i] = __uint_as_float(words[i] << 16);
      to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000U);
    }
  } else {
    to[0] = to_float(*from);
  }
}

template <int N>
__device__ void load_run(const float* from, float (&to)[N]) {
  if constexpr (N == kRun) {
    const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
    const float values[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    for (int i = 0; i < N; ++i) to[i] = values[i];
  } else {
    to[0] = *from;
  }
}

template <int N>
__device__ void store_run(const float (&from)[N], __nv_bfloat16* to) {
  if constexpr (N == kRun) {
    alignas(16) __nv_bfloat162 pairs[N / 2];
    for (int i = 0; i < N / 2; ++i) pairs[i] = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(pairs);
  } else {
    *to = from_float<__nv_bfloat16>(from[0]);
  }
}

template <int N>
__device__ void store_run(const float (&from)[N], float* to) {
  if constexpr (N == kRun) {
    reinterpret_cast<float4*>(to)[0] = make_float4(from[0], from[1], from[2], from[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(from[4], from[5], from[6], from[7]);
  } else {
    *to = from[0];
  }
}

}  // namespace squareq::cuda
