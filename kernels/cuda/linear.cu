// Linear layers on many rows: weights expanded to bfloat16, products through cuBLASLt (the path w8a16).
#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/few_rows.h"
#include "kernels/cuda/pack.cuh"

namespace squareq::cuda {
namespace {

constexpr int kRun = 16;  // INT8 values that a thread expands: one 16-byte load, two 16-byte stores

struct alignas(16) Int8Run {
  std::int8_t values[kRun];
};
struct alignas(16) Bf16Run {
  __nv_bfloat16 values[kRun];
};

// out = scale of the row times the value, rounded once.
__global__ void expand_runs(const Int8Run* values, const float* scales, std::int64_t runs_per_row, Bf16Run* out) {
  const std::int64_t run = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (run >= runs_per_row) return;
  const float scale = scales[blockIdx.y];
  const std::int64_t at = blockIdx.y * runs_per_row + run;
  const Int8Run q = values[at];
  Bf16Run w;
#pragma unroll
  for (int i = 0; i < kRun; ++i) w.values[i] = __float2bfloat16_rn(scale * static_cast<float>(q.values[i]));
  out[at] = w;
}

__global__ void expand_values(const std::int8_t* values, const float* scales, std::int64_t cols, __nv_bfloat16* out) {
  const std::int64_t col = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (col >= cols) return;
  const std::int64_t at = blockIdx.y * cols + col;
  out[at] = __float2bfloat16_rn(scales[blockIdx.y] * static_cast<float>(values[at]));
}

// The INT8 matrix as bfloat16.
void expand(const Weight& weight, View out, cudaStream_t stream) {
  require(weight.values.contiguous(), "linear: INT8 weights are contiguous");
  const auto* scales = reinterpret_cast<const float*>(weight.scales.data);
  const auto rows = static_cast<unsigned>(weight.out());
  const bool runs = weight.in() % kRun == 0 && reinterpret_cast<std::uintptr_t>(weight.values.data) % kRun == 0;
  if (runs) {
    expand_runs<<<dim3(ceil_div(weight.in() / kRun, kThreads), rows), kThreads, 0, stream>>>(
        reinterpret_cast<const Int8Run*>(weight.values.data), scales, weight.in() / kRun,
        reinterpret_cast<Bf16Run*>(out.data));
  } else {
    expand_values<<<dim3(ceil_div(weight.in(), kThreads), rows), kThreads, 0, stream>>>(
        reinterpret_cast<const std::int8_t*>(weight.values.data), scales, weight.in(),
        reinterpret_cast<__nv_bfloat16*>(out.data));
  }
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

void CudaOps::linear(const LinearForward& p) {
  check_shapes(p.x, p.weight.in(), p.weight, p.lora);
  const bool output = p.y || p.act || p.sum;
  if (few_float_rows({p.x, p.y, p.u}) && !p.act && !p.sum) return few_rows_linear(p);

  Scratch scratch(*this);
  const View workspace = scratch.take(DType::U8, 1, 1, GemmPlans::kWorkspace);
  std::vector<std::pair<ConstView, View>> conversions;
  const ConstView x = as_bf16(scratch, p.x, conversions);
  std::vector<ConstView> a, b;
  for (const LoraBranch& branch : p.lora) {
    a.push_back(as_bf16(scratch, branch.a, conversions));
    b.push_back(as_bf16(scratch, branch.b, conversions));
  }
  const bool own_u = !p.u || p.u.dtype != DType::BF16;
  const View u = own_u ? scratch.take(DType::BF16, p.x.batch, p.x.rows, rank_sum(p.lora)) : p.u;
  View y = p.y;
  if (!y && output) y = scratch.take(activation_type(), p.x.batch, p.x.rows, p.weight.out());
  View bias;
  if (p.weight.bias && output) bias = scratch.take(y.dtype, 1, 1, p.weight.out());
  ConstView weight = p.weight.values;
  View expanded;
  if (output && weight.dtype != DType::BF16) {
    expanded = scratch.take(DType::BF16, 1, p.weight.out(), p.weight.in());
    weight = expanded;
  }
  if (scratch.rehearsing()) return;

  {
    const ProfileSpan span = timed(KernelFamily::kAdapter, 0.0);
    for (const auto& [from, to] : conversions) convert(from, to, Accumulate::kNo);
  }
  std::int64_t column = 0;
  const auto down = [&](std::size_t i) {
    const View part = u.col_slice(column, p.lora[i].rank());
    column += p.lora[i].rank();
    return part;
  };
  for (std::size_t i = 0; i < p.lora.size(); ++i) {
    const ProfileSpan span = timed(KernelFamily::kAdapter, traffic({x}));
    const View part = down(i);
    product(x, shared_matrix(a[i]), Transpose::kYes, 1.0F, 0.0F, part, workspace);
    keep_ranks(p.lora[i], part);
  }
  if (own_u && p.u) copy(u, p.u, Accumulate::kNo);
  if (!output) return;

  if (expanded) expand_weight(p.weight, expanded);
  if (bias) copy(p.weight.bias, bias, Accumulate::kNo);
  {
    const ProfileSpan span = timed(KernelFamily::kLinear, product_operations(y, x.cols));
    product(x, shared_matrix(weight), Transpose::kYes, 1.0F, 0.0F, y, workspace, bias.data);
  }
  column = 0;
  for (std::size_t i = 0; i < p.lora.size(); ++i) {
    const LoraBranch& branch = p.lora[i];
    const ProfileSpan span = timed(KernelFamily::kAdapter, 2 * traffic({y}));
    product(down(i), shared_matrix(b[i]), Transpose::kYes, branch.scale, 1.0F,
            y.col_slice(branch.row_begin, branch.b.rows), workspace);
  }
  if (p.act) activation(Activation::kGeluTanh, y.col_slice(p.gelu_begin, y.cols - p.gelu_begin), {}, p.act);
  const ProfileSpan span = timed(KernelFamily::kElementwise, p.sum ? traffic({p.residual, y, p.sum}) : 0.0);
  if (p.sum) add_gated(p.residual, p.gate, y, p.sum, stream_);
}

void CudaOps::linear_backward(const LinearBackward& p) {
  check_shapes(p.dy, p.weight.out(), p.weight, p.lora);
  bool trained = false;
  for (const LoraBranch& branch : p.lora) trained |= branch.trained();
  if (!p.dx && !trained) return;
  if (few_float_rows({p.dy, p.dx, p.x, p.u})) return few_rows_linear_backward(p);

  Scratch scratch(*this);
  const View workspace = scratch.take(DType::U8, 1, 1, GemmPlans::kWorkspace);
  std::vector<std::pair<ConstView, View>> conversions;
  const ConstView dy = as_bf16(scratch, p.dy, conversions);
  const ConstView x = trained ? as_bf16(scratch, p.x, conversions) : ConstView{};
  const ConstView u = trained ? as_bf16(scratch, p.u, conversions) : ConstView{};
  std::vector<ConstView> a, b;
  std::vector<View> du;
  for (const LoraBranch& branch : p.lora) {
    a.push_back(as_bf16(scratch, branch.a, conversions));
    b.push_back(as_bf16(scratch, branch.b, conversions));
    du.push_back(scratch.take(DType::BF16, dy.batch, dy.rows, branch.rank()));
  }
  ConstView weight = p.weight.values;
  View expanded;
  if (p.dx && weight.dtype != DType::BF16) {
    expanded = scratch.take(DType::BF16, 1, p.weight.out(), p.weight.in());
    weight = expanded;
  }
  if (scratch.rehearsing()) return;

  {
    const ProfileSpan span = timed(KernelFamily::kAdapter, 0.0);
    for (const auto& [from, to] : conversions) convert(from, to, Accumulate::kNo);
  }
  std::int64_t column = 0;
  for (std::size_t i = 0; i < p.lora.size(); ++i) {
    const LoraBranch& branch = p.lora[i];
    const ProfileSpan span = timed(KernelFamily::kAdapter, 2 * traffic({dy}) + traffic({x}));
    const ConstView dy_rows = dy.col_slice(branch.row_begin, branch.b.rows);
    product(dy_rows, shared_matrix(b[i]), Transpose::kNo, branch.scale, 0.0F, du[i], workspace);
    keep_ranks(branch, du[i]);
    if (branch.trained()) {
      add_outer(du[i], x, 1.0F, branch.da, workspace);
      add_outer(dy_rows, u.col_slice(column, branch.rank()), branch.scale, branch.db, workspace);
    }
    column += branch.rank();
  }
  if (!p.dx) return;
  if (expanded) expand_weight(p.weight, expanded);
  {
    const ProfileSpan span = timed(KernelFamily::kLinear, product_operations(p.dx, dy.cols));
    product(dy, shared_matrix(weight), Transpose::kNo, 1.0F, p.accumulate == Accumulate::kYes ? 1.0F : 0.0F, p.dx,
            workspace);
  }
  for (std::size_t i = 0; i < p.lora.size(); ++i) {
    const ProfileSpan span = timed(KernelFamily::kAdapter, 2 * traffic({p.dx}));
    product(du[i], shared_matrix(a[i]), Transpose::kNo, 1.0F, 1.0F, p.dx, workspace);
  }
}

void CudaOps::keep_ranks(const LoraBranch& branch, View u) {
  if (branch.keep) gate_backward(u, branch.keep, {}, u, {});
}

void CudaOps::expand_weight(const Weight& weight, View out) {
  const ProfileSpan span = timed(KernelFamily::kConversion, traffic({weight.values, out}));
  if (weight.codec == Codec::kInt8Rows) return expand(weight, out, stream_);
  convert(weight.values, out, Accumulate::kNo);
}

// y = alpha * x op(w) + beta * y + bias.
void CudaOps::product(ConstView x, GemmMatrix w, Transpose transpose, float alpha, float beta, View y, View workspace,
                      const void* bias) {
  if (as_matrix(x).batch == 1 && as_matrix(y).batch == 1) {
    x = as_matrix(x);
    y = as_matrix(y);
  }
  gemm_.run({.transpose_b = transpose,
             .batch = y.batch,
             .m = y.rows,
             .n = y.cols,
             .k = x.cols,
             .alpha = alpha,
             .a = matrix(x),
             .b = w,
             .beta = beta,
             .c = matrix(y),
             .bias = bias},
            workspace);
}

// out [m, n] += alpha * left^T right, summed over the rows of all samples in order.
void CudaOps::add_outer(ConstView left, ConstView right, float alpha, View out, View workspace) {
  if (as_matrix(left).batch == 1 && as_matrix(right).batch == 1) {
    left = as_matrix(left);
    right = as_matrix(right);
  }
  for (std::int64_t sample = 0; sample < left.batch; ++sample) {
    const ConstView l = left.batch_slice(sample, 1);
    gemm_.run({.transpose_a = Transpose::kYes,
               .m = left.cols,
               .n = right.cols,
               .k = left.rows,
               .alpha = alpha,
               .a = matrix(l),
               .b = matrix(right.batch_slice(sample, 1)),
               .beta = 1.0F,
               .c = matrix(out)},
              workspace);
  }
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
    few_rows(p.x, plain(branch.a), 1.0F, Accumulate::kNo, part, stream_);
    keep_ranks(branch, part);
    if (!p.y) continue;
    few_rows(part, plain(branch.b), branch.scale, Accumulate::kYes, p.y.col_slice(branch.row_begin, branch.b.rows),
             stream_);
  }
}

void CudaOps::few_rows_linear_backward(const LinearBackward& p) {
  Scratch scratch(*this);
  const View du = scratch.take(DType::F32, p.dy.batch, p.dy.rows, rank_sum(p.lora));
  if (scratch.rehearsing()) return;
  const ProfileSpan span = timed(KernelFamily::kFewRows, p.dx ? traffic({p.weight.values}) : 0.0);
  if (p.dx) few_rows_backward(p.dy, p.weight, 1.0F, p.accumulate, p.dx, stream_);
  std::int64_t column = 0;
  for (const LoraBranch& branch : p.lora) {
    const View part = du.col_slice(column, branch.rank());
    const ConstView dy = p.dy.col_slice(branch.row_begin, branch.b.rows);
    few_rows_backward(dy, plain(branch.b), branch.scale, Accumulate::kNo, part, stream_);
    keep_ranks(branch, part);
    if (branch.trained()) {
      few_rows_outer(part, p.x, 1.0F, branch.da, stream_);
      few_rows_outer(dy, p.u.col_slice(column, branch.rank()), branch.scale, branch.db, stream_);
    }
    if (p.dx) few_rows_backward(part, plain(branch.a), 1.0F, Accumulate::kYes, p.dx, stream_);
    column += branch.rank();
  }
}

}  // namespace squareq::cuda
