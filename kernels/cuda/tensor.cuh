// Views as kernels see them, and values of any activation type as float32.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <stdexcept>

#include "kernels/base/view.h"

namespace squareq::cuda {

// Rows of [batch, rows, cols] with elements of type T; the last axis is contiguous.
template <class T>
struct Rows {
  T* data;
  std::int64_t batch_stride, row_stride;  // in elements

  __host__ __device__ T* operator()(std::int64_t b, std::int64_t r) const {
    return data + b * batch_stride + r * row_stride;
  }
};

template <class T, class Byte>
auto rows_of(const BasicView<Byte>& v) {
  using Element = std::conditional_t<std::is_const_v<Byte>, const T, T>;
  return Rows<Element>{reinterpret_cast<Element*>(v.data), v.batch_stride, v.row_stride};
}

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
template <class T>
__device__ T from_float(float v);
template <>
__device__ inline float from_float<float>(float v) {
  return v;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// Calls f.template operator()<T>() with the C++ type of an activation: float or __nv_bfloat16.
template <class Function>
void with_type(DType dtype, Function f) {
  if (dtype == DType::BF16) return f.template operator()<__nv_bfloat16>();
  if (dtype == DType::F32) return f.template operator()<float>();
  throw std::logic_error("CUDA operations take float32 and bfloat16 activations only");
}

inline void require(bool condition, const char* what) {
  if (!condition) throw std::logic_error(what);
}

inline unsigned ceil_div(std::int64_t a, std::int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

}  // namespace squareq::cuda
