// The CPU backend. One family of operations per file; this header holds the class and the ways its loops are shared
// among threads. How work is cut depends on shapes only, so results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "kernels/base/thread_pool.h"
#include "kernels/ops.h"

namespace squareq {

inline void require(bool condition, const char* what) {
  if (!condition) throw std::logic_error(what);
}

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Scratch memory that only grows.
class Scratch {
 public:
  float* at_least(std::int64_t count) {
    if (static_cast<std::size_t>(count) > memory_.size()) memory_.resize(static_cast<std::size_t>(count));
    return memory_.data();
  }

 private:
  std::vector<float> memory_;
};

// A row-major float32 matrix somewhere in memory.
template <class Float>
struct BasicMatrix {
  Float* data = nullptr;
  std::int64_t stride = 0;

  Float* row(std::int64_t r) const { return data + r * stride; }
  operator BasicMatrix<const Float>() const  // NOLINT(google-explicit-constructor)
      requires(!std::is_const_v<Float>) {
    return {data, stride};
  }
};
using Matrix = BasicMatrix<float>;
using ConstMatrix = BasicMatrix<const float>;

// Do all rows of all samples lie at one stride, so that the view is one matrix [batch * rows, cols]?
inline bool is_matrix(const ConstView& v) { return v.batch == 1 || v.batch_stride == v.rows * v.row_stride; }

class CpuOps : public Ops {
 public:
  explicit CpuOps(int threads);

  DType activation_type() const override { return DType::F32; }
  std::size_t scratch_need(const std::function<void()>&) override { return 0; }
  void use_scratch(View) override {}

  void linear(const LinearForward& p) override;
  void linear_backward(const LinearBackward& p) override;
  void modulated_norm(const ModulatedNorm& p) override;
  void modulated_norm_backward(const ModulatedNormBackward& p) override;
  void layer_norm(ConstView x, ConstView gain, ConstView bias, float epsilon, View y) override;
  void rms_norm(ConstView x, ConstView gain, float epsilon, View y) override;
  void group_norm(const GroupNorm& p) override;
  void norm_rope(const NormRope& p) override;
  void norm_rope_backward(const NormRopeBackward& p) override;
  void attention(const Attention& p) override;
  void attention_backward(const AttentionBackward& p) override;
  void convolution(const Convolution& p) override;
  void activation(Activation f, ConstView x, ConstView times, View y) override;
  void activation_backward(Activation f, ConstView dy, ConstView x, View dx, Accumulate accumulate) override;
  void gate_backward(ConstView dsum, ConstView gate, ConstView y, View dy, View dgate) override;
  void gather(ConstView table, std::span<const std::int32_t> ids, View y) override;
  void sinusoid(std::span<const float> values, View y) override;
  void transpose(ConstView x, View y) override;
  void copy(ConstView x, View y, Accumulate accumulate) override;
  void fill(View y, float value) override;
  void flow_loss(const FlowLoss& p) override;
  double sum_of_squares(ConstView x) override;
  void adamw(const AdamW& p) override;
  void lerp(ConstView x, float weight, View y) override;

 private:
  void adamw_codes(const AdamW& p);

  struct Worker {
    Scratch weights, tile, scores, more_scores, row;
  };

  // Calls work(b, t, begin, n) for pieces [begin, begin + n) of rows (b, t) that together cover [batch, rows, cols].
  template <class Work>
  void for_pieces(std::int64_t batch, std::int64_t rows, std::int64_t cols, Work work) {
    constexpr std::int64_t kElements = 16384;
    if (batch * rows * cols == 0) return;
    const std::int64_t parts = ceil_div(cols, kElements);
    const std::int64_t rows_per_task = std::max<std::int64_t>(kElements / cols, 1);
    const std::int64_t row_tasks = ceil_div(batch * rows, rows_per_task);
    pool_.parallel_for(row_tasks * parts, [&](std::int64_t task, int) {
      const std::int64_t begin = task % parts * kElements;
      const std::int64_t n = std::min(kElements, cols - begin);
      const std::int64_t first = task / parts * rows_per_task;
      const std::int64_t last = std::min(first + rows_per_task, batch * rows);
      for (std::int64_t r = first; r < last; ++r) work(r / rows, r % rows, begin, n);
    });
  }

  // Calls work(b, t, worker) for every row of [batch, rows, cols].
  template <class Work>
  void for_rows(std::int64_t batch, std::int64_t rows, std::int64_t cols, Work work) {
    constexpr std::int64_t kElements = 16384;
    if (batch * rows * cols == 0) return;
    const std::int64_t rows_per_task = std::max<std::int64_t>(kElements / cols, 1);
    pool_.parallel_for(ceil_div(batch * rows, rows_per_task), [&](std::int64_t task, int worker) {
      const std::int64_t last = std::min((task + 1) * rows_per_task, batch * rows);
      for (std::int64_t r = task * rows_per_task; r < last; ++r) work(r / rows, r % rows, worker);
    });
  }

  // out [B, 1, C] = sum over `rows` of term(b, t, c), in float64.
  template <class Term>
  void column_sums(std::int64_t rows, View out, Term term) {
    constexpr std::int64_t kColumns = 64;
    const std::int64_t parts = ceil_div(out.cols, kColumns);
    pool_.parallel_for(out.batch * parts, [&](std::int64_t task, int) {
      const std::int64_t b = task / parts;
      const std::int64_t begin = task % parts * kColumns;
      const std::int64_t n = std::min(kColumns, out.cols - begin);
      double sums[kColumns] = {};
      for (std::int64_t t = 0; t < rows; ++t) {
        for (std::int64_t c = 0; c < n; ++c) sums[c] += static_cast<double>(term(b, t, begin + c));
      }
      float* to = out.f32(b) + begin;
      for (std::int64_t c = 0; c < n; ++c) to[c] = static_cast<float>(sums[c]);
    });
  }

  Worker& worker(int index) { return workers_[static_cast<std::size_t>(index)]; }

  ThreadPool pool_;
  std::vector<Worker> workers_;
  Scratch x_, dy_, u_, du_, statistics_, gain_, bias_;

  // linear.cpp
  void product(ConstMatrix x, std::int64_t rows, const Weight& weight, bool backward, std::int64_t begin,
               std::int64_t n, float beta, Matrix out, Worker& own) const;
  ConstMatrix as_matrix(ConstView x, Scratch& memory, bool needed,
                        const std::function<void(ConstMatrix x, std::int64_t begin, std::int64_t n)>& then);
};

// The values of a vector or contiguous view as floats: in place if it is F32, else converted into `memory`.
inline const float* as_floats(ConstView v, Scratch& memory) {
  if (v.dtype == DType::F32) return v.f32();
  require(v.contiguous(), "a view that is not F32 must be contiguous");
  float* floats = memory.at_least(v.count());
  to_f32(v.data, v.dtype, floats, v.count());
  return floats;
}

}  // namespace squareq
