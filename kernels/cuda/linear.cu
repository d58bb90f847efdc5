// Linear layers on many rows: weights expanded to bfloat16, products through cuBLASLt (the path w8a16).
#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/few_rows.h"
#include "kernels/cuda/lora_products.h"
#include "kernels/cuda/pack.cuh"

namespace squareq::cuda {
namespace {

// Weights have no more than a few thousand columns: small blocks waste less at the end of a row, and several rows a
// thread keep enough loads in flight.
constexpr int kExpandThreads = 128;
constexpr int kExpandRows = 4;

// out = scale of the row times the value, rounded once.
template <int N>
__global__ void __launch_bounds__(kExpandThreads)
    expand_kernel(Rows<const std::int8_t> values, const float* __restrict__ scales, int rows, int cols,
                  Rows<__nv_bfloat16> out) {
  let_next_kernel_begin();
  const int c = (blockIdx.x * kExpandThreads + threadIdx.x) * N;
  if (c >= cols) return;
  const int first = blockIdx.y * kExpandRows;
  Pack<std::int8_t, N> packs[kExpandRows];
#pragma unroll
  for (int i = 0; i < kExpandRows; ++i) packs[i] = load<N>(values(0, min(first + i, rows - 1)) + c);
#pragma unroll
  for (int i = 0; i < kExpandRows; ++i) {
    if (first + i >= rows) return;
    const float scale = scales[first + i];
    float w[N];
    for (int j = 0; j < N; ++j) w[j] = scale * packs[i][j];
    store<N>(out(0, first + i) + c, w);
  }
}

// The INT8 matrix as bfloat16.
void expand(const Weight& weight, View out, cudaStream_t stream) {
  with_width(wide({weight.values, out}), [&]<int N>() {
    const dim3 blocks(ceil_div(weight.in(), kExpandThreads * N), ceil_div(weight.out(), kExpandRows));
    expand_kernel<N><<<blocks, kExpandThreads, 0, stream>>>(
        rows_of<std::int8_t>(weight.values), reinterpret_cast<const float*>(weight.scales.data),
        static_cast<int>(weight.out()), static_cast<int>(weight.in()), rows_of<__nv_bfloat16>(out));
  });
  check_launch("expand");
}

// sum = residual + gate * y.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    gated_residual(Packs<N> packs, Rows<const T> residual, Rows<const float> gate, Rows<const T> y, Rows<T> sum) {
  const auto [b, t, c, inside] = packs.mine();
  if (!inside) return;
  float result[N], g[N], v[N];
  load<N>(residual(b, t) + c, result);
  load<N>(gate(b, 0) + c, g);
  load<N>(y(b, t) + c, v);
#pragma unroll
  for (int i = 0; i < N; ++i) result[i] += g[i] * v[i];
  store<N>(sum(b, t) + c, result);
}

void add_gated(ConstView residual, ConstView gate, ConstView y, View sum, cudaStream_t stream) {
  require(residual.dtype == sum.dtype && y.dtype == sum.dtype, "linear: residual, y and sum are of one type");
  with_type(sum.dtype, [&]<class T>() {
    with_width(wide({residual, gate, y, sum}), [&]<int N>() {
      const Packs<N> packs(sum);
      gated_residual<T, N><<<packs.blocks(), kThreads, 0, stream>>>(packs, rows_of<T>(residual), float_rows(gate),
                                                                    rows_of<T>(y), rows_of<T>(sum));
    });
  });
  check_launch("gated_residual");
}

std::int64_t rank_sum(std::span<const LoraBranch> lora) {
  std::int64_t sum = 0;
  for (const LoraBranch& branch : lora) sum += branch.rank();
  return sum;
}

// All samples as one matrix where they lie at one stride.
template <class V>
V as_matrix(V v) {
  if (v.batch > 1 && v.batch_stride == v.rows * v.row_stride) {
    v.rows *= v.batch;
    v.batch = 1;
  }
  return v;
}

GemmMatrix matrix(const ConstView& v) { return {v.data, v.dtype, v.row_stride, v.batch > 1 ? v.batch_stride : 0}; }
GemmMatrix shared_matrix(const ConstView& v) { return {v.data, v.dtype, v.row_stride, 0}; }

void check_shapes(const ConstView& x, std::int64_t in, const Weight& weight, std::span<const LoraBranch> lora) {
  require(x.cols == in, "linear: width of the input");
  for (const LoraBranch& branch : lora) {
    require(branch.a.cols == weight.in() && branch.b.cols == branch.rank() && branch.row_begin >= 0 &&
                branch.row_begin + branch.b.rows <= weight.out(),
            "linear: adapter does not fit");
  }
}

// Are those that there are float32 and of at most kFewRows rows?
bool few_float_rows(std::initializer_list<ConstView> views) {
  return std::all_of(views.begin(), views.end(),
                     [](const ConstView& v) { return !v || (v.dtype == DType::F32 && v.batch * v.rows <= kFewRows); });
}

Weight plain(ConstView values) { return {.values = values}; }

}  // namespace

// The same values in bfloat16, in scratch unless they are so already.
ConstView CudaOps::as_bf16(Scratch& scratch, ConstView x, std::vector<std::pair<ConstView, View>>& conversions) {
  if (x.dtype == DType::BF16) return x;
  const View converted = scratch.take(DType::BF16, x.batch, x.rows, x.cols);
  conversions.emplace_back(x, converted);
  return converted;
}

void CudaOps::stack_adapters(std::span<const LoraBranch> lora) {
  if (Scratch(*this).rehearsing()) return;
  double bytes = 0.0;
  for (const LoraBranch& branch : lora) bytes += traffic({branch.a, branch.b, branch.stacked_a, branch.stacked_b});
  const ProfileSpan span = timed(KernelFamily::kAdapter, bytes);
  cuda::stack_adapters(lora, stream_);
}

void CudaOps::linear(const LinearForward& p) {
  check_shapes(p.x, p.weight.in(), p.weight, p.lora);
  const bool output = p.y || p.act || p.sum;
  require(p.u || p.lora.empty() || !p.u_known, "linear: u is not known");
  if (p.u_known && !output) return;
  if (few_float_rows({p.x, p.y, p.u}) && !p.act && !p.sum) return few_rows_linear(p);
  if (output) {
    const Product path =
        product_of(p.weight, Pass::kForward, p.x, !p.lora.empty() || p.act || p.sum, {p.y, p.act, p.residual, p.sum});
    if (path != Product::kAlone) return linear_fused(p, path);
  }

  Scratch scratch(*this);
  const bool adapted = !p.lora.empty();
  const View workspace = scratch.take(DType::U8, 1, 1, GemmPlans::kWorkspace);
  std::vector<std::pair<ConstView, View>> conversions;
  const ConstView x = as_bf16(scratch, p.x, conversions);
  const StackedAdapters stacked = stacks_of(p.lora, p.weight);
  const bool own_u = adapted && (!p.u || p.u.dtype != DType::BF16);
  const View u = own_u ? scratch.take(DType::BF16, p.x.batch, p.x.rows, adapter_columns(p.lora)) : p.u;
  View y = p.y;
  if (!y && output) y = scratch.take(activation_type(), p.x.batch, p.x.rows, p.weight.out());
  ConstView bias = output ? p.weight.bias : ConstView{};
  if (bias && bias.dtype != y.dtype) {
    const View converted = scratch.take(y.dtype, 1, 1, p.weight.out());
    conversions.emplace_back(bias, converted);
    bias = converted;
  }
  const Operand weight = output ? expanded(scratch, p.weight) : Operand{};
  const Gemm up = product(u, shared_matrix(stacked.b), Transpose::kNo, 0.0F, y);
  const Gemm main = product(x, shared_matrix(weight.values), Transpose::kYes, adapted ? 1.0F : 0.0F, y, bias);
  if (scratch.rehearsing()) {
    if (adapted && output) gemm_.foresee(up);
    if (output) gemm_.foresee(main);
    return;
  }

  convert_all(conversions);
  if (adapted) {
    compute_u(p, x, stacked.a, u);
    // The product with the weight then adds to this: so y is read while that product computes, not in a pass of its
    // own.
    const ProfileSpan span = timed(KernelFamily::kAdapter, output ? traffic({y}) : 0.0);
    if (output) gemm_.run(up, workspace);
  }
  if (!output) return;

  if (weight.missing) prepare(p.weight, weight.missing);
  {
    const ProfileSpan span = timed(KernelFamily::kLinear, product_operations(y, x.cols));
    gemm_.run(main, workspace);
  }
  if (p.act) activation(Activation::kGeluTanh, y.col_slice(p.gelu_begin, y.cols - p.gelu_begin), {}, p.act);
  if (p.sum) {
    const ProfileSpan span = timed(KernelFamily::kElementwise, traffic({p.residual, y, p.sum}));
    add_gated(p.residual, p.gate, y, p.sum, stream_);
  }
}

// u in bfloat16, which is p.u where that is, from x in bfloat16.
void CudaOps::compute_u(const LinearForward& p, const ConstView& x, const ConstView& a, const View& u) {
  if (p.u_known) {
    if (u.data != p.u.data) convert(p.u, u, Accumulate::kNo);
    return;
  }
  const ProfileSpan span = timed(KernelFamily::kAdapter, traffic({x}));
  project_down(x, a, u, stream_);
  keep_ranks(p.lora, u);
  if (p.u && u.data != p.u.data) convert(u, p.u, Accumulate::kNo);
}

CudaOps::AdapterScratch CudaOps::take_adapters(Scratch& scratch, const LinearBackward& p, bool trained,
                                               std::vector<std::pair<ConstView, View>>& conversions) {
  const std::int64_t ranks = adapter_columns(p.lora);
  AdapterScratch adapters;
  if (trained) {
    adapters.x = as_bf16(scratch, p.x, conversions);
    adapters.u = as_bf16(scratch, p.u, conversions);
    adapters.da = scratch.take(DType::F32, outer_pieces(p.x), ranks, p.x.cols);
    adapters.db = scratch.take(DType::F32, outer_pieces(p.dy), ranks, p.dy.cols);
  }
  adapters.stacked = stacks_of(p.lora, p.weight);
  adapters.du = scratch.take(DType::BF16, p.dy.batch, p.dy.rows, ranks);
  return adapters;
}

// Computes du and adds to the gradients of the adapters that are trained.
void CudaOps::adapter_gradients(const LinearBackward& p, const ConstView& dy, const AdapterScratch& adapters) {
  const ProfileSpan span =
      timed(KernelFamily::kAdapter, adapters.da ? 2 * traffic({dy}) + traffic({adapters.x}) : traffic({dy}));
  project_down(dy, adapters.stacked.b, adapters.du, stream_);
  keep_ranks(p.lora, adapters.du);
  if (!adapters.da) return;
  sum_outer(adapters.u, dy, adapters.db, stream_);  // first, since dy has just been read
  sum_outer(adapters.du, adapters.x, adapters.da, stream_);
  add_adapter_gradients(p.lora, adapters.da, adapters.db, stream_);
}

void CudaOps::linear_backward(const LinearBackward& p) {
  check_shapes(p.dy, p.weight.out(), p.weight, p.lora);
  bool trained = false;
  for (const LoraBranch& branch : p.lora) trained |= branch.trained();
  if (!p.dx && !trained) return;
  if (few_float_rows({p.dy, p.dx, p.x, p.u})) return few_rows_linear_backward(p);
  if (p.dx) {
    const Product path = product_of(p.weight, Pass::kBackward, p.dy, !p.lora.empty(), {p.dx});
    if (path != Product::kAlone) return linear_backward_fused(p, path);
  }

  Scratch scratch(*this);
  const bool adapted = !p.lora.empty();
  const View workspace = scratch.take(DType::U8, 1, 1, GemmPlans::kWorkspace);
  std::vector<std::pair<ConstView, View>> conversions;
  const ConstView dy = as_bf16(scratch, p.dy, conversions);
  const AdapterScratch adapters = take_adapters(scratch, p, trained, conversions);
  const Operand weight = p.dx ? expanded(scratch, p.weight) : Operand{};
  const float beta = p.accumulate == Accumulate::kYes ? 1.0F : 0.0F;
  const Gemm up = product(adapters.du, shared_matrix(adapters.stacked.a), Transpose::kNo, beta, p.dx);
  const Gemm main = product(dy, shared_matrix(weight.values), Transpose::kNo, adapted ? 1.0F : beta, p.dx);
  if (scratch.rehearsing()) {
    if (adapted && p.dx) gemm_.foresee(up);
    if (p.dx) gemm_.foresee(main);
    return;
  }

  convert_all(conversions);
  if (adapted) {
    adapter_gradients(p, dy, adapters);
    const ProfileSpan span = timed(KernelFamily::kAdapter, p.dx ? traffic({p.dx}) : 0.0);
    if (p.dx) gemm_.run(up, workspace);
  }
  if (!p.dx) return;
  if (weight.missing) prepare(p.weight, weight.missing);
  const ProfileSpan span = timed(KernelFamily::kLinear, product_operations(p.dx, dy.cols));
  gemm_.run(main, workspace);
}

// u or du of some branches, side by side, times the factors of their ranks.
void CudaOps::keep_ranks(std::span<const LoraBranch> lora, const View& u) {
  std::int64_t column = 0;
  for (const LoraBranch& branch : lora) {
    const View part = u.col_slice(column, branch.rank());
    if (branch.keep) gate_backward(part, branch.keep, {}, part, {});
    column += branch.rank();
  }
}

View CudaOps::prepared_form(const Weight& weight) const {
  if (multiplies_int8(weight)) return {nullptr, DType::I8, 1, weight.in(), weight.out()};
  if (weight.values.dtype == DType::BF16) return {};
  return {nullptr, DType::BF16, 1, weight.out(), weight.in()};
}

bool CudaOps::forward_reads_prepared() const {
  return options_.precision == DeviceOptions::Precision::kW8A16 && tensor_cores_ != TensorCores::kSm90;
}

void CudaOps::prepare(const Weight& weight, View to) {
  const ProfileSpan span = timed(KernelFamily::kConversion, traffic({weight.values, to}));
  if (to.dtype == DType::I8) return transpose_int8(weight.values, to, stream_);
  if (weight.codec == Codec::kInt8Rows) return expand(weight, to, stream_);
  convert(weight.values, to, Accumulate::kNo);
}

CudaOps::Operand CudaOps::expanded(Scratch& scratch, const Weight& weight) {
  for (const ConstView& there : {weight.values, weight.prepared}) {
    if (there.dtype == DType::BF16) return {.values = there};
  }
  const View missing = scratch.take(DType::BF16, 1, weight.out(), weight.in());
  return {.values = missing, .missing = missing};
}

CudaOps::Operand CudaOps::transposed(Scratch& scratch, const Weight& weight) {
  if (weight.prepared.dtype == DType::I8) return {.values = weight.prepared};
  const View missing = scratch.take(DType::I8, 1, weight.in(), weight.out());
  return {.values = missing, .missing = missing};
}

void CudaOps::convert_all(const std::vector<std::pair<ConstView, View>>& conversions) {
  for (const auto& [from, to] : conversions) copy(from, to, Accumulate::kNo);
}

// y = x op(w) + beta * y + bias.
Gemm CudaOps::product(ConstView x, GemmMatrix w, Transpose transpose, float beta, View y, ConstView bias) {
  if (as_matrix(x).batch == 1 && as_matrix(y).batch == 1) {
    x = as_matrix(x);
    y = as_matrix(y);
  }
  return {.transpose_b = transpose,
          .batch = y.batch,
          .m = y.rows,
          .n = y.cols,
          .k = x.cols,
          .a = matrix(x),
          .b = w,
          .beta = beta,
          .c = matrix(y),
          .bias = bias};
}

void CudaOps::few_rows_linear(const LinearForward& p) {
  Scratch scratch(*this);
  const View u = p.u ? p.u : scratch.take(DType::F32, p.x.batch, p.x.rows, rank_sum(p.lora));
  if (scratch.rehearsing()) return;
  const ProfileSpan span = timed(KernelFamily::kFewRows, traffic({p.weight.values}));
  if (p.y) few_rows(p.x, p.weight, 1.0F, Accumulate::kNo, p.y, stream_);
  std::int64_t column = 0;
  for (const LoraBranch& branch : p.lora) {
    const View part = u.col_slice(column, branch.rank());
    column += branch.rank();
    if (!p.u_known) {
      few_rows(p.x, plain(branch.a), 1.0F, Accumulate::kNo, part, stream_);
      keep_ranks({&branch, 1}, part);
    }
    if (!p.y) continue;
    few_rows(part, plain(branch.b), branch.scale, Accumulate::kYes, p.y.col_slice(branch.row_begin, branch.b.rows),
             stream_);
  }
}

void CudaOps::few_rows_linear_backward(const LinearBackward& p) {
  const std::int64_t rows = p.dy.batch * p.dy.rows;
  Scratch scratch(*this);
  const View du = scratch.take(DType::F32, p.dy.batch, p.dy.rows, rank_sum(p.lora));
  std::int64_t largest = 0;
  const auto foresee = [&](const Weight& weight) {
    largest = std::max(largest, few_rows_shares(rows, weight) * rows * weight.in());
  };
  if (p.dx) foresee(p.weight);
  for (const LoraBranch& branch : p.lora) {
    foresee(plain(branch.b));
    if (p.dx) foresee(plain(branch.a));
  }
  const View pieces = scratch.take(DType::F32, 1, 1, largest);
  if (scratch.rehearsing()) return;
  const ProfileSpan span = timed(KernelFamily::kFewRows, p.dx ? traffic({p.weight.values}) : 0.0);
  if (p.dx) few_rows_backward(p.dy, p.weight, 1.0F, p.accumulate, p.dx, pieces, stream_);
  std::int64_t column = 0;
  for (const LoraBranch& branch : p.lora) {
    const View part = du.col_slice(column, branch.rank());
    const ConstView dy = p.dy.col_slice(branch.row_begin, branch.b.rows);
    few_rows_backward(dy, plain(branch.b), branch.scale, Accumulate::kNo, part, pieces, stream_);
    keep_ranks({&branch, 1}, part);
    if (branch.trained()) {
      few_rows_outer(part, p.x, 1.0F, branch.da, stream_);
      few_rows_outer(dy, p.u.col_slice(column, branch.rank()), branch.scale, branch.db, stream_);
    }
    if (p.dx) few_rows_backward(part, plain(branch.a), 1.0F, Accumulate::kYes, p.dx, pieces, stream_);
    column += branch.rank();
  }
}

}  // namespace squareq::cuda
