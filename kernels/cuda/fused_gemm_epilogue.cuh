#pragma once

#include "kernels/cuda/activation_math.cuh"
#include "kernels/cuda/reduce.cuh"

namespace squareq::cuda {

__host__ __device__ constexpr int ceil_div_device(int a, int b) { return (a + b - 1) / b; }

struct Int8Product {
  int m, n, k;
  const std::int8_t* a;
  std::int64_t a_stride;
  const std::int8_t* b;
  std::int64_t b_stride;
  const float* a_scales;
  const float* b_scales;
};

struct LowRank {
  int rank = 0;
  const __nv_bfloat16* u = nullptr;
  std::int64_t u_stride = 0;
  const __nv_bfloat16* v = nullptr;
  std::int64_t v_stride = 0;
  bool v_by_rank = false;
};

// What becomes of the values of a row: y = (or +=) value + bias; act = GELU of it; sum = residual + gate * it.
struct Epilogue {
  AnyRows<const std::byte> bias{};
  Rows<__nv_bfloat16> y{};
  bool accumulate = false;
  Rows<__nv_bfloat16> act{};
  int gelu_begin = 0;
  Sigmoidal gelu{};
  const float* gate = nullptr;
  Rows<const __nv_bfloat16> residual{};
  Rows<__nv_bfloat16> sum{};
  bool wide = false;

  template <int N>
  __device__ void write_pack(int r, int c, const float* from) const {
    float v[N];
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = from[i];
    if (bias) {
      float term[N];
      bias.load<N>(0, 0, c, term);
#pragma unroll
      for (int i = 0; i < N; ++i) v[i] += term[i];
    }
    if (y.data != nullptr) {
      auto* to = y(0, r) + c;
      if (accumulate) {
        const auto before = load<N>(to);
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] += before[i];
      }
      store<N>(to, v);
    }
    if (act.data != nullptr && c >= gelu_begin) {
      float result[N];
#pragma unroll
      for (int i = 0; i < N; ++i) result[i] = gelu.value(v[i]);
      store<N>(act(0, r) + (c - gelu_begin), result);
    }
    if (sum.data != nullptr) {
      float result[N];
      load<N>(residual(0, r) + c, result);
      const Pack<float, N> g = load<N>(gate + c);
#pragma unroll
      for (int i = 0; i < N; ++i) result[i] += g[i] * v[i];
      store<N>(sum(0, r) + c, result);
    }
  }

  // Columns [c, c + kWide) of row r, those below cols; `from` is in shared memory.
  __device__ void write(int r, int c, int cols, const float* from) const {
    if (wide) return write_pack<kWide>(r, c, from);
    for (int i = 0; i < kWide && c + i < cols; ++i) write_pack<1>(r, c + i, from + i);
  }
};

void int8_product_sm80(const Int8Product& p, const LowRank& term, const Epilogue& epilogue, cudaStream_t stream);

}  // namespace squareq::cuda
