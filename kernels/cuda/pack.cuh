// Neighbouring values of a row, moved together: eight at a time in 16-byte accesses where sizes, strides and pointers
// allow it (see wide()), else one at a time.
#pragma once

#include <cuda_fp16.h>

#include <initializer_list>

#include "kernels/cuda/tensor.cuh"

namespace squareq::cuda {

inline constexpr int kWide = 8;
inline constexpr int kThreads = 256;  // of a block, where nothing else decides

__device__ inline float to_float(__half v) { return __half2float(v); }
__device__ inline float to_float(std::int8_t v) { return static_cast<float>(v); }

// N neighbouring values as they stand in memory. Fewer than four promise no alignment beyond that of T.
template <class T, int N>
struct alignas(N < 4 ? sizeof(T) : (N * sizeof(T) < 16 ? N * sizeof(T) : 16)) Pack {
  T values[N];

  __device__ float operator[](int i) const { return to_float(values[i]); }
};

template <int N, class T>
__device__ Pack<T, N> load(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <int N, class T>
__device__ void load(const T* from, float (&values)[N]) {
  const Pack<T, N> pack = load<N>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = pack[i];
}

template <int N, class T>
__device__ void store(T* to, const float (&values)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.values[i] = from_float<T>(values[i]);
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// Rows whose type is known at run time only: the secondary operands of a kernel, which would else multiply its
// instances. All threads take the same branch, once for each pack.
template <class Byte>
struct AnyRows {
  Byte* data;
  std::int64_t batch_stride, row_stride;  // in elements
  DType dtype;

  __host__ __device__ explicit operator bool() const { return data != nullptr; }

  template <class T>
  __device__ auto at(std::int64_t b, std::int64_t r, std::int64_t c) const {
    using Element = std::conditional_t<std::is_const_v<Byte>, const T, T>;
    return reinterpret_cast<Element*>(data) + b * batch_stride + r * row_stride + c;
  }
  template <int N>
  __device__ void load(std::int64_t b, std::int64_t r, std::int64_t c, float (&values)[N]) const {
    if (dtype == DType::BF16) {
      cuda::load<N>(at<__nv_bfloat16>(b, r, c), values);
    } else if (dtype == DType::F32) {
      cuda::load<N>(at<float>(b, r, c), values);
    } else {
      cuda::load<N>(at<__half>(b, r, c), values);
    }
  }
  __device__ float value(std::int64_t b, std::int64_t r, std::int64_t c) const {
    float one[1];
    load(b, r, c, one);
    return one[0];
  }
  template <int N>
  __device__ void store(std::int64_t b, std::int64_t r, std::int64_t c, const float (&values)[N]) const {
    if (dtype == DType::BF16) {
      cuda::store<N>(at<__nv_bfloat16>(b, r, c), values);
    } else {
      cuda::store<N>(at<float>(b, r, c), values);
    }
  }
};

inline AnyRows<std::byte> any_rows(const View& v) {
  require(v.dtype == DType::F32 || v.dtype == DType::BF16, "CUDA operations write float32 and bfloat16 only");
  return {v.data, v.batch_stride, v.row_stride, v.dtype};
}
inline AnyRows<const std::byte> any_rows(const ConstView& v) {
  require(v.dtype == DType::F32 || v.dtype == DType::BF16 || v.dtype == DType::F16,
          "CUDA operations read float32, bfloat16 and float16 only");
  return {v.data, v.batch_stride, v.row_stride, v.dtype};
}

// Rows of what the contract of arithmetic says is float32.
template <class Byte>
auto float_rows(const BasicView<Byte>& v) {
  require(v.dtype == DType::F32, "a float32 view is needed");
  return rows_of<float>(v);
}

// Is an optional view given? In a rehearsal views have shapes but no memory.
inline bool present(const ConstView& v) { return v.batch > 0; }

// May all rows of these views be moved kWide values at a time? Views that are not there do not mind.
inline bool wide(std::initializer_list<ConstView> views) {
  for (const ConstView& v : views) {
    if (!v) continue;
    if (reinterpret_cast<std::uintptr_t>(v.data) % 16 != 0 || v.cols % kWide != 0) return false;
    if (v.rows > 1 && v.row_stride % kWide != 0) return false;
    if (v.batch > 1 && v.batch_stride % kWide != 0) return false;
  }
  return true;
}

// Calls f.template operator()<N>() with the number of values to move at a time.
template <class Function>
void with_width(bool is_wide, Function f) {
  return is_wide ? f.template operator()<kWide>() : f.template operator()<1>();
}

// The types of two operands and the width at once: f.template operator()<A, B, N>().
template <class Function>
void with_types(DType a, DType b, bool is_wide, Function f) {
  with_type(a, [&]<class A>() {
    with_type(b, [&]<class B>() { with_width(is_wide, [&]<int N>() { f.template operator()<A, B, N>(); }); });
  });
}

// [batch, rows, cols] dealt out to threads, a pack of N columns each. Counted in 32 bits: dividing wider numbers would
// cost more than the memory accesses of a pack.
template <int N>
class Packs {
 public:
  explicit Packs(const ConstView& v) {
    const std::int64_t total = v.batch * v.rows * (v.cols / N);
    require(total <= (std::int64_t{1} << 31), "the tensor is too large for one CUDA operation");
    rows_ = static_cast<unsigned>(v.rows);
    in_row_ = static_cast<unsigned>(v.cols / N);
    total_ = static_cast<unsigned>(total);
  }

  unsigned blocks() const { return ceil_div(total_, kThreads); }

  struct Place {
    unsigned b, t, c;
    bool inside;
  };
  __device__ Place mine() const {
    const unsigned i = blockIdx.x * kThreads + threadIdx.x;
    const unsigned row = i / in_row_;
    return {row / rows_, row % rows_, (i % in_row_) * N, i < total_};
  }

 private:
  unsigned rows_, in_row_, total_;
};

}  // namespace squareq::cuda
