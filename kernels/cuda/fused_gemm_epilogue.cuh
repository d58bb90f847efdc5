// What becomes of the sums of a fused product once they are scaled: see FusedGemm.
#pragma once

#include "kernels/cuda/activation_math.cuh"
#include "kernels/cuda/fused_gemm.h"
#include "kernels/cuda/pack.cuh"

namespace squareq::cuda {

class Epilogue {
 public:
  explicit Epilogue(const FusedGemm& g)
      : bias_(any_rows(g.bias)),
        y_(rows_of<__nv_bfloat16>(g.y)),
        act_(rows_of<__nv_bfloat16>(g.act)),
        sum_(rows_of<__nv_bfloat16>(g.sum)),
        residual_(rows_of<__nv_bfloat16>(g.residual)),
        gate_(reinterpret_cast<const float*>(g.gate.data)),
        gelu_begin_(static_cast<int>(g.gelu_begin)),
        gelu_(sigmoidal(Activation::kGeluTanh)),
        add_(g.accumulate == Accumulate::kYes),
        wide_(wide({g.bias, g.y, g.act, g.gate, g.residual, g.sum}) && g.gelu_begin % kWide == 0 &&
              g.b.rows % kWide == 0) {}

  // Columns [c, c + kWide) of row r, those below cols; c is a multiple of kWide and `values` 16-byte aligned.
  __device__ void write(int r, int c, int cols, const float* values) const {
    if (wide_) return write_pack<kWide>(r, c, values);
    for (int i = 0; i < kWide && c + i < cols; ++i) write_pack<1>(r, c + i, values + i);
  }

 private:
  template <int N>
  __device__ void write_pack(int r, int c, const float* values) const {
    float v[N];
    load<N>(values, v);
    if (bias_) {
      float term[N];
      bias_.load(0, 0, c, term);
#pragma unroll
      for (int i = 0; i < N; ++i) v[i] += term[i];
    }
    if (y_.data != nullptr) {
      __nv_bfloat16* to = y_(0, r) + c;
      if (add_) {
        const Pack<__nv_bfloat16, N> before = load<N>(to);
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] += before[i];
      }
      store<N>(to, v);
    }
    if (act_.data != nullptr && c >= gelu_begin_) {
      float result[N];
#pragma unroll
      for (int i = 0; i < N; ++i) result[i] = gelu_.value(v[i]);
      store<N>(act_(0, r) + (c - gelu_begin_), result);
    }
    if (sum_.data != nullptr) {
      float result[N];
      load<N>(residual_(0, r) + c, result);
      float factor[N];
#pragma unroll
      for (int i = 0; i < N; ++i) factor[i] = 1.0F;
      if (gate_ != nullptr) load<N>(gate_ + c, factor);
#pragma unroll
      for (int i = 0; i < N; ++i) result[i] += factor[i] * v[i];
      store<N>(sum_(0, r) + c, result);
    }
  }

  AnyRows<const std::byte> bias_;
  Rows<__nv_bfloat16> y_, act_, sum_;
  Rows<const __nv_bfloat16> residual_;
  const float* gate_;
  int gelu_begin_;
  Sigmoidal gelu_;
  bool add_, wide_;
};

}  // namespace squareq::cuda
