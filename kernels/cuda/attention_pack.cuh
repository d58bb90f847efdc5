// What the attention kernels ask of a view, and copies of the views that do not offer it: float32, or rows that do not
// start at multiples of 16 bytes, or heads whose features are no multiple of 8.
#pragma once

#include <algorithm>
#include <span>

#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/attention_views.h"
#include "kernels/cuda/check.h"

namespace squareq::cuda {

// The heads of a view as the kernels read and write them: `view` itself or a packed bfloat16 copy, where each head is
// followed by zeros up to a multiple of 8 features.
template <class AnyView>
struct Heads {
  AnyView view;
  View copy;  // of no batch where the view is used itself

  bool copied() const { return copy.batch > 0; }
  auto rows() const { return rows_of<__nv_bfloat16>(copied() ? AnyView(copy) : view); }
};

inline std::int64_t padded_features(std::int64_t features) { return (features + 7) / 8 * 8; }

template <class AnyView, class Scratch>
Heads<AnyView> take_heads(Scratch& scratch, const AnyView& v, std::int64_t heads) {
  if (has_aligned_heads(v, heads)) return {v, View{}};
  return {v, scratch.take(DType::BF16, v.batch, v.rows, heads * padded_features(v.cols / heads))};
}

template <class T>
__global__ void pack_heads_kernel(Rows<const T> from, Rows<__nv_bfloat16> to, std::int64_t rows, int columns,
                                  int features, int padded) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= rows * columns) return;
  const std::int64_t r = i / columns;
  const int c = static_cast<int>(i % columns), feature = c % padded;
  const float value = feature < features ? to_float(from(blockIdx.y, r)[c / padded * features + feature]) : 0.0F;
  to(blockIdx.y, r)[c] = from_float<__nv_bfloat16>(value);
}

template <class T>
__global__ void unpack_heads_kernel(Rows<const __nv_bfloat16> from, Rows<T> to, std::int64_t rows, int columns,
                                    int features, int padded) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= rows * columns) return;
  const std::int64_t r = i / columns;
  const int c = static_cast<int>(i % columns), feature = c % padded;
  if (feature < features)
    to(blockIdx.y, r)[c / padded * features + feature] = from_float<T>(to_float(from(blockIdx.y, r)[c]));
}

inline dim3 elements_grid(const View& copy, unsigned threads) {
  return {ceil_div(copy.rows * copy.cols, threads), static_cast<unsigned>(copy.batch)};
}

template <class AnyView>
void pack(const Heads<AnyView>& h, std::int64_t heads, cudaStream_t stream) {
  if (!h.copied()) return;
  const int features = static_cast<int>(h.view.cols / heads), columns = static_cast<int>(h.copy.cols);
  with_type(h.view.dtype, [&]<class T>() {
    pack_heads_kernel<T><<<elements_grid(h.copy, 256), 256, 0, stream>>>(
        rows_of<T>(ConstView(h.view)), rows_of<__nv_bfloat16>(h.copy), h.copy.rows, columns, features,
        static_cast<int>(padded_features(features)));
    check_launch("pack_heads_kernel");
  });
}

inline void unpack(const Heads<View>& h, std::int64_t heads, cudaStream_t stream) {
  if (!h.copied()) return;
  const int features = static_cast<int>(h.view.cols / heads), columns = static_cast<int>(h.copy.cols);
  with_type(h.view.dtype, [&]<class T>() {
    unpack_heads_kernel<T><<<elements_grid(h.copy, 256), 256, 0, stream>>>(
        rows_of<__nv_bfloat16>(ConstView(h.copy)), rows_of<T>(h.view), h.copy.rows, columns, features,
        static_cast<int>(padded_features(features)));
    check_launch("unpack_heads_kernel");
  });
}

template <class T>
Rows<T> from_sample(Rows<T> rows, std::int64_t sample) {
  if (rows.data != nullptr) rows.data += sample * rows.batch_stride;
  return rows;
}

template <class Params>
void check_attention_shapes(const Params& p) {
  require(p.heads > 0 && p.q.cols % p.heads == 0 && same_shape(p.q, p.k) && same_shape(p.q, p.v), "attention: shapes");
  require(p.scale > 0.0F, "attention: the scale must be positive");
  require(p.q.rows < (std::int64_t{1} << 30), "attention: too many rows");
  require(p.valid_keys.empty() || static_cast<std::int64_t>(p.valid_keys.size()) == p.q.batch,
          "attention: one count of valid keys per sample");
  for (const std::int64_t valid : p.valid_keys) {
    require(valid >= 0 && p.masked_end <= p.q.rows && (valid > 0 || p.masked_end < p.q.rows),
            "attention: mask leaves no key");
  }
}

// What samples [first, first + samples) see.
template <class Params>
tile::Sight sight_of(const Params& p, std::int64_t first, std::int64_t samples) {
  tile::Sight sight{.length = static_cast<int>(p.q.rows), .causal = p.causal};
  if (p.valid_keys.empty()) return sight;
  sight.hidden_end = static_cast<int>(p.masked_end);
  for (std::int64_t b = 0; b < samples; ++b) {
    const std::int64_t valid = p.valid_keys[static_cast<std::size_t>(first + b)];
    sight.hidden_begin[b] = static_cast<int>(std::min(valid, p.q.rows));
  }
  return sight;
}

// Calls f(first, samples) for groups of samples that one launch takes.
template <class Function>
void for_sample_groups(std::int64_t batch, Function f) {
  for (std::int64_t first = 0; first < batch; first += tile::Sight::kSamples) {
    f(first, std::min<std::int64_t>(tile::Sight::kSamples, batch - first));
  }
}

template <class Kernel>
void allow_shared_memory(Kernel kernel, int bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "cudaFuncSetAttribute");
}

}  // namespace squareq::cuda
