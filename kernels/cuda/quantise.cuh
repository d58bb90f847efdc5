// Symmetric INT8 with one scale for a row: what quantise_rows and kernels that quantise what they compute share.
#pragma once

#include "kernels/cuda/reduce.cuh"

namespace squareq::cuda {

// The largest magnitude as the bits of a float, which order as the magnitudes do, infinity and NaN last.
template <int N>
__device__ std::uint32_t magnitude_bits(const float (&v)[N]) {
  std::uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) largest = max(largest, __float_as_uint(v[i]) & 0x7FFFFFFFU);
  return largest;
}

// The maximum over the block, in every thread.
__device__ inline std::uint32_t block_max(std::uint32_t value, std::uint32_t (&buffer)[kWarp]) {
  const unsigned lane = threadIdx.x % kWarp;
  value = __reduce_max_sync(0xFFFFFFFFU, value);
  if (lane == 0) buffer[threadIdx.x / kWarp] = value;
  __syncthreads();
  return __reduce_max_sync(0xFFFFFFFFU, lane < blockDim.x / kWarp ? buffer[lane] : 0U);
}

struct RowScale {
  float scale = 1.0F;
  float inverse = 0.0F;  // q = x * inverse

  __device__ explicit RowScale(std::uint32_t largest_bits) {
    constexpr float kSmallest = 1e-30F;  // whose inverse is still finite
    const float largest = __uint_as_float(largest_bits);
    if (largest < kSmallest) return;
    scale = largest / 127.0F;
    inverse = 127.0F / largest;
  }
};

// The low byte is v * inverse rounded half to even, |v * inverse| being at most 127: the sum's last bit counts ones.
__device__ inline std::uint32_t quantised(float v, float inverse) {
  constexpr float kOnes = 12582912.0F;  // 1.5 * 2^23
  return __float_as_uint(fmaf(v, inverse, kOnes));
}

template <int N>
__device__ void store_quantised(std::int8_t* to, const float (&v)[N], float inverse) {
  if constexpr (N == 1) {
    *to = static_cast<std::int8_t>(quantised(v[0], inverse) & 0xFFU);
  } else {
    static_assert(N == 8);
    std::uint32_t words[2];
#pragma unroll
    for (int w = 0; w < 2; ++w) {
      const std::uint32_t low = __byte_perm(quantised(v[4 * w], inverse), quantised(v[4 * w + 1], inverse), 0x0040);
      const std::uint32_t high =
          __byte_perm(quantised(v[4 * w + 2], inverse), quantised(v[4 * w + 3], inverse), 0x0040);
      words[w] = __byte_perm(low, high, 0x5410);
    }
    *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
  }
}

}  // namespace squareq::cuda
