// Linear layers whose product with the weight does all the rest in its epilogue: scales, the adapters as one low-rank
// term, bias, GELU, gate and residual. Its operands are INT8 (the path w8a8: activations are quantised row by row) or
// bfloat16, and there, on compute capability 9.0, the weight may be INT8. Adapters and their gradients are computed
// from what was not quantised.
#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/few_rows.h"
#include "kernels/cuda/pack.cuh"

namespace squareq::cuda {
namespace {

constexpr std::int64_t kWidthStep = 16;  // of INT8 values: rows begin at multiples of 16 bytes

// Do all samples stand at one stride, as one matrix?
bool joined(const ConstView& v) { return v.batch <= 1 || v.batch_stride == v.rows * v.row_stride; }

// Samples [first, first + samples) as one matrix; nothing of nothing.
template <class V>
V matrix_of(V v, std::int64_t first, std::int64_t samples) {
  if (!v) return v;
  v = v.batch_slice(first, samples);
  v.rows *= samples;
  v.batch = 1;
  return v;
}

// Other widths would need padded copies.
bool fused_widths(const Weight& weight) { return weight.in() % kWidthStep == 0 && weight.out() % kWidthStep == 0; }

// Rows that TMA copies.
bool aligned(const ConstView& v) {
  return !v || (reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0 && v.row_stride % 8 == 0 && v.batch_stride % 8 == 0);
}

// INT8 sums are exact, so where the results' rows are not aligned as wgmma's kernel wants them, mma's computes the
// same.
void multiply(const FusedGemm& gemm, TensorCores cores, cudaStream_t stream) {
  fused_gemm(gemm, fused_gemm_supports(gemm, cores) ? cores : TensorCores::kSm80, stream);
}

// Calls f(first, samples): once if the whole batch may be one matrix, else for each sample.
template <class Function>
void for_matrices(std::int64_t batch, bool whole, Function f) {
  const std::int64_t samples = whole ? batch : 1;
  for (std::int64_t first = 0; first < batch; first += samples) f(first, samples);
}

}  // namespace

bool CudaOps::multiplies_int8(const Weight& weight) const {
  return options_.precision == DeviceOptions::Precision::kW8A8 && fused_widths(weight) &&
         weight.codec == Codec::kInt8Rows;
}

// Decided by types, shapes and alignment alone. Few rows gain nothing from INT8. Products that read INT8 weights as
// they are stored save the expanding, whose time does not depend on the rows; backward, where the scales cost time too,
// more is lost on many rows. In bfloat16 cuBLASLt's products are a little faster than the fused one, which wins only by
// the passes over the output that it saves, and only on many rows.
CudaOps::Product CudaOps::product_of(const Weight& weight, Pass pass, ConstView rows, bool saves_passes,
                                     std::initializer_list<ConstView> outputs) const {
  constexpr std::int64_t kManyRows = 1024, kMostStoredBackward = 2560;
  const std::int64_t count = rows.batch * rows.rows;
  const auto bf16 = [](const ConstView& v) { return !v || v.dtype == DType::BF16; };
  if (count <= kFewRows || !fused_widths(weight) || !std::all_of(outputs.begin(), outputs.end(), bf16)) {
    return Product::kAlone;
  }
  if (multiplies_int8(weight)) return Product::kFusedInt8;
  const bool fits = bf16(rows) && aligned(rows) && std::all_of(outputs.begin(), outputs.end(), aligned);
  if (tensor_cores_ != TensorCores::kSm90 || !fits) return Product::kAlone;
  if (weight.codec == Codec::kInt8Rows && (pass == Pass::kForward || count <= kMostStoredBackward)) {
    return Product::kFusedStored;
  }
  return saves_passes && count >= kManyRows ? Product::kFusedBf16 : Product::kAlone;
}

QuantisedRows CudaOps::take_quantised(Scratch& scratch, const ConstView& x) {
  const std::int64_t rows = x.batch * x.rows;
  return {scratch.take(DType::I8, 1, rows, x.cols), scratch.take(DType::F32, 1, 1, rows)};
}

void CudaOps::linear_fused(const LinearForward& p, Product path) {
  const bool int8 = path == Product::kFusedInt8, stored = path != Product::kFusedBf16;
  Scratch scratch(*this);
  const bool adapted = !p.lora.empty();
  std::vector<std::pair<ConstView, View>> conversions;
  const ConstView x = as_bf16(scratch, p.x, conversions);
  const StackedAdapters stacked = stacks_of(p.lora, p.weight);
  const bool own_u = adapted && (!p.u || p.u.dtype != DType::BF16);
  const View u = own_u ? scratch.take(DType::BF16, x.batch, x.rows, adapter_columns(p.lora)) : p.u;
  QuantisedRows quantised;
  if (int8) quantised = take_quantised(scratch, x);
  const Operand weight = stored ? Operand{.values = p.weight.values} : expanded(scratch, p.weight);
  if (scratch.rehearsing()) return;

  convert_all(conversions);
  if (adapted) compute_u(p, x, stacked.a, u);
  if (weight.missing) prepare(p.weight, weight.missing);
  if (int8) quantise(x, {}, quantised);
  const ProfileSpan span =
      timed(KernelFamily::kLinear, 2.0 * static_cast<double>(x.count()) * static_cast<double>(p.weight.out()));
  const bool whole = (int8 || joined(x)) && joined(u) && joined(p.y) && joined(p.act) && !p.sum;
  for_matrices(x.batch, whole, [&](std::int64_t first, std::int64_t samples) {
    const std::int64_t rows = samples * x.rows;
    multiply({.a = int8 ? quantised.values.row_slice(first * x.rows, rows) : matrix_of(x, first, samples),
              .b = weight.values,
              .a_scale = int8 ? quantised.scales.col_slice(first * x.rows, rows) : View{},
              .b_scale = stored ? p.weight.scales : ConstView{},
              .u = adapted ? matrix_of(ConstView(u), first, samples) : ConstView{},
              .v = stacked.b,
              .transpose_v = Transpose::kNo,
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

void CudaOps::linear_backward_fused(const LinearBackward& p, Product path) {
  const bool int8 = path == Product::kFusedInt8, stored = path == Product::kFusedStored;
  const bool adapted = !p.lora.empty();
  const bool trained =
      std::any_of(p.lora.begin(), p.lora.end(), [](const LoraBranch& branch) { return branch.trained(); });
  Scratch scratch(*this);
  std::vector<std::pair<ConstView, View>> conversions;
  const ConstView dy = as_bf16(scratch, p.dy, conversions);
  const AdapterScratch adapters = take_adapters(scratch, p, trained, conversions);
  QuantisedRows quantised;
  if (int8) quantised = take_quantised(scratch, dy);
  const Operand weight = int8     ? transposed(scratch, p.weight)
                         : stored ? Operand{.values = p.weight.values}
                                  : expanded(scratch, p.weight);
  if (scratch.rehearsing()) return;

  convert_all(conversions);
  if (adapted) adapter_gradients(p, dy, adapters);
  if (weight.missing) prepare(p.weight, weight.missing);
  // The sums run over the weight's rows, so their scales belong to dy.
  if (int8) quantise(dy, p.weight.scales, quantised);
  const ProfileSpan span = timed(KernelFamily::kLinear, product_operations(p.dx, dy.cols));
  for_matrices(dy.batch, (int8 || joined(dy)) && joined(p.dx), [&](std::int64_t first, std::int64_t samples) {
    const std::int64_t rows = samples * dy.rows;
    multiply({.a = int8 ? quantised.values.row_slice(first * dy.rows, rows) : matrix_of(dy, first, samples),
              .b = weight.values,
              .transpose_b = int8 ? Transpose::kYes : Transpose::kNo,
              .a_scale = int8 ? quantised.scales.col_slice(first * dy.rows, rows) : View{},
              .b_scale = stored ? p.weight.scales : ConstView{},
              .u = adapted ? matrix_of(ConstView(adapters.du), first, samples) : ConstView{},
              .v = adapters.stacked.a,
              .transpose_v = Transpose::kNo,
              .y = matrix_of(p.dx, first, samples),
              .accumulate = p.accumulate},
             tensor_cores_, stream_);
  });
}

void CudaOps::quantise(const ConstView& x, const ConstView& factors, const QuantisedRows& to) {
  const ProfileSpan span = timed(KernelFamily::kConversion, traffic({x, to.values}));
  quantise_rows(x, factors, to, stream_);
}

}  // namespace squareq::cuda
