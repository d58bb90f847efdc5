// Linear layers on INT8 tensor cores (the path w8a8): activations are quantised row by row, scales meet the sums in the
// product's epilogue, and so do the adapters as one low-rank term. Adapters and their gradients are computed from what
// was not quantised.
#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/few_rows.h"
#include "kernels/cuda/fused_gemm.h"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/quantise.h"

namespace squareq::cuda {
namespace {

constexpr std::int64_t kRankStep = 8;    // what the low-rank term's rank is a multiple of
constexpr std::int64_t kWidthStep = 16;  // of INT8 values: rows begin at multiples of 16 bytes

std::int64_t padded_rank(std::span<const LoraBranch> lora) {
  std::int64_t sum = 0;
  for (const LoraBranch& branch : lora) sum += branch.rank();
  return (sum + kRankStep - 1) / kRankStep * kRankStep;
}

// to = factor * from, which stands from row `begin` on; zeros elsewhere.
__global__ void __launch_bounds__(kThreads) place_kernel(Rows<const float> from, int rows, int cols, int begin,
                                                         float factor, Rows<__nv_bfloat16> to, int to_cols) {
  const int r = static_cast<int>(blockIdx.y);
  const int c = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (c >= to_cols) return;
  const bool inside = r >= begin && r < begin + rows && c < cols;
  to(0, r)[c] = __float2bfloat16_rn(inside ? factor * from(0, r - begin)[c] : 0.0F);
}

void place(const ConstView& from, std::int64_t begin, float factor, const View& to, cudaStream_t stream) {
  place_kernel<<<dim3(ceil_div(to.cols, kThreads), static_cast<unsigned>(to.rows)), kThreads, 0, stream>>>(
      float_rows(from), static_cast<int>(from.rows), static_cast<int>(from.cols), static_cast<int>(begin), factor,
      rows_of<__nv_bfloat16>(to), static_cast<int>(to.cols));
  check_launch("place");
}

// All samples as one matrix.
bool joined(const ConstView& v) { return v.batch == 1 || v.batch_stride == v.rows * v.row_stride; }

// Calls f(rows, sample, samples) for the whole batch where all views allow it, else for each sample.
template <class Function>
void for_matrices(std::int64_t batch, bool whole, Function f) {
  if (whole) return f(std::int64_t{0}, batch);
  for (std::int64_t b = 0; b < batch; ++b) f(b, std::int64_t{1});
}

template <class V>
V matrix_of(V v, std::int64_t first, std::int64_t samples) {
  if (!v) return v;
  v = v.batch_slice(first, samples);
  v.rows *= samples;
  v.batch = 1;
  return v;
}

}  // namespace

bool CudaOps::computes_in_int8(const Weight& weight, ConstView rows, std::initializer_list<ConstView> outputs) const {
  return options_.precision == DeviceOptions::Precision::kW8A8 && weight.codec == Codec::kInt8Rows &&
         rows.batch * rows.rows > kFewRows && weight.in() % kWidthStep == 0 && weight.out() % kWidthStep == 0 &&
         std::all_of(outputs.begin(), outputs.end(), [](const ConstView& v) { return !v || v.dtype == DType::BF16; });
}

// Adapters side by side, in bfloat16 and with zeros up to the padded rank: [rank, in], and [out, rank] times scale,
// with zeros outside of an adapter's rows.
struct CudaOps::AdapterPanels {
  View a, b;

  AdapterPanels(Scratch& scratch, const Weight& weight, std::span<const LoraBranch> lora) {
    const std::int64_t rank = padded_rank(lora);
    if (rank == 0) return;
    a = scratch.take(DType::BF16, 1, rank, weight.in());
    b = scratch.take(DType::BF16, 1, weight.out(), rank);
  }
  void fill(std::span<const LoraBranch> lora, cudaStream_t stream) const {
    std::int64_t column = 0;
    for (std::size_t i = 0; i < lora.size(); ++i) {
      const std::int64_t width = i + 1 < lora.size() ? lora[i].rank() : a.rows - column;
      place(lora[i].a, 0, 1.0F, a.row_slice(column, width), stream);
      place(lora[i].b, lora[i].row_begin, lora[i].scale, b.col_slice(column, width), stream);
      column += width;
    }
  }
};

void CudaOps::linear_w8a8(const LinearForward& p) {
  Scratch scratch(*this);
  const View workspace = scratch.take(DType::U8, 1, 1, GemmPlans::kWorkspace);
  std::vector<std::pair<ConstView, View>> conversions;
  const ConstView x = as_bf16(scratch, p.x, conversions);
  const AdapterPanels panels(scratch, p.weight, p.lora);
  const std::int64_t rank = panels.a.rows;
  const bool own_u = rank > 0 && (!p.u || p.u.dtype != DType::BF16 || p.u.cols != rank || p.u.row_stride % kWide != 0);
  const View u = own_u ? scratch.take(DType::BF16, x.batch, x.rows, rank) : p.u;
  const QuantisedRows q{scratch.take(DType::I8, 1, x.batch * x.rows, x.cols),
                        scratch.take(DType::F32, 1, 1, x.batch * x.rows)};
  if (scratch.rehearsing()) return;

  for (const auto& [from, to] : conversions) copy(from, to, Accumulate::kNo);
  if (rank > 0) {
    panels.fill(p.lora, stream_);
    product(x, {panels.a.data, DType::BF16, panels.a.row_stride}, Transpose::kYes, 1.0F, 0.0F, u, workspace);
    if (own_u && p.u) copy(u.col_slice(0, p.u.cols), p.u, Accumulate::kNo);
  }
  if (!p.y && !p.act && !p.sum) return;

  quantise_rows(x, {}, q, stream_);
  const bool whole = joined(u) && joined(p.y) && joined(p.act) && !p.sum;
  for_matrices(x.batch, whole, [&](std::int64_t first, std::int64_t samples) {
    const std::int64_t rows = samples * x.rows;
    fused_gemm({.a = q.values.row_slice(first * x.rows, rows),
                .b = p.weight.values,
                .a_scale = q.scales.col_slice(first * x.rows, rows),
                .b_scale = p.weight.scales,
                .u = matrix_of(ConstView(rank > 0 ? u : View{}), first, samples),
                .v = panels.b,
                .bias = p.weight.bias,
                .y = matrix_of(p.y, first, samples),
                .act = matrix_of(p.act, first, samples),
                .gelu_begin = p.gelu_begin,
                .gate = matrix_of(p.gate, first, samples),
                .residual = matrix_of(p.residual, first, samples),
                .sum = matrix_of(p.sum, first, samples)},
               tensor_cores_, stream_);
  });
}

void CudaOps::linear_backward_w8a8(const LinearBackward& p) {
  Scratch scratch(*this);
  const View workspace = scratch.take(DType::U8, 1, 1, GemmPlans::kWorkspace);
  std::vector<std::pair<ConstView, View>> conversions;
  const ConstView dy = as_bf16(scratch, p.dy, conversions);
  bool trained = false;
  for (const LoraBranch& branch : p.lora) trained |= branch.trained();
  const ConstView x = trained ? as_bf16(scratch, p.x, conversions) : ConstView{};
  const ConstView u = trained ? as_bf16(scratch, p.u, conversions) : ConstView{};
  const AdapterPanels panels(scratch, p.weight, p.lora);
  const std::int64_t rank = panels.a.rows;
  const View du = rank > 0 ? scratch.take(DType::BF16, dy.batch, dy.rows, rank) : View{};
  QuantisedRows q;
  View weight;
  if (p.dx) {
    q = {scratch.take(DType::I8, 1, dy.batch * dy.rows, dy.cols), scratch.take(DType::F32, 1, 1, dy.batch * dy.rows)};
    weight = scratch.take(DType::I8, 1, p.weight.in(), p.weight.out());
  }
  if (scratch.rehearsing()) return;

  for (const auto& [from, to] : conversions) copy(from, to, Accumulate::kNo);
  if (rank > 0) {
    panels.fill(p.lora, stream_);
    product(dy, {panels.b.data, DType::BF16, panels.b.row_stride}, Transpose::kNo, 1.0F, 0.0F, du, workspace);
  }
  std::int64_t column = 0;
  for (const LoraBranch& branch : p.lora) {
    if (branch.trained()) {
      add_outer(du.col_slice(column, branch.rank()), x, 1.0F, branch.da, workspace);
      add_outer(dy.col_slice(branch.row_begin, branch.b.rows), u.col_slice(column, branch.rank()), branch.scale,
                branch.db, workspace);
    }
    column += branch.rank();
  }
  if (!p.dx) return;

  // The sums run over the weight's rows, so their scales belong to dy.
  quantise_rows(dy, p.weight.scales, q, stream_);
  transpose_int8(p.weight.values, weight, stream_);
  for_matrices(dy.batch, joined(p.dx), [&](std::int64_t first, std::int64_t samples) {
    const std::int64_t rows = samples * dy.rows;
    fused_gemm({.a = q.values.row_slice(first * dy.rows, rows),
                .b = weight,
                .a_scale = q.scales.col_slice(first * dy.rows, rows),
                .u = matrix_of(ConstView(du), first, samples),
                .v = panels.a,
                .transpose_v = Transpose::kNo,
                .y = matrix_of(p.dx, first, samples),
                .accumulate = p.accumulate},
               tensor_cores_, stream_);
  });
}

}  // namespace squareq::cuda
