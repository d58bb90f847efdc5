// The contract of arithmetic. Every operation of the four networks, forward and backward, as coarse as the fused
// kernels that implement it. A backend (kernels/cpu, kernels/cuda) implements the whole class.
//
// Conventions
// - Activations are [batch B, rows T (tokens), cols C]; any View may be a slice, so strides matter. Their type is the
//   backend's activation_type(), or float32. "per sample" tensors [B, 1, C], vectors [1, 1, C], adapters, statistics,
//   rotary tables and losses are float32 everywhere (vectors of weights: any floating type).
// - A gradient has the name of its value with a leading d. Optional views are empty when not wanted; what nobody
//   reads is not computed. Gradients of adapters always accumulate; others say Accumulate.
// - Outputs may not overlap inputs unless said.
// - Sums are in float32 or wider; a result does not depend on the number of threads.
// - Shapes are the caller's duty: a mismatch throws std::logic_error.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "kernels/base/carver.h"
#include "kernels/base/view.h"

namespace squareq {

// One low-rank adapter on rows [row_begin, row_begin + b.rows) of a linear layer: y += scale * u b^T with
// u = keep * (x a^T).
struct LoraBranch {
  ConstView a;  // [1, r, in] F32
  ConstView b;  // [1, rows, r] F32
  View da;      // gradients, as a and b; empty for a frozen adapter
  View db;
  ConstView keep;  // [B, 1, r] F32 factors of the ranks of each sample (rank dropout); empty: 1
  std::int64_t row_begin = 0;
  float scale = 1.0F;
  // Its rows of two matrices in which all branches of the linear are stacked (take_stacks), for backends that multiply
  // in another type than float32. Ops::stack_adapters writes them; where they are empty, it need not be called.
  View stacked_a;  // [1, n, in]: a, and zeros below
  View stacked_b;  // [1, n, out]: scale * b^T, and zeros below and in the columns that it does not reach

  std::int64_t rank() const { return a.rows; }
  bool trained() const { return static_cast<bool>(da); }
};

// Columns of u: the ranks of the branches in turn, then padding that keeps rows aligned and is the backend's own.
inline std::int64_t adapter_columns(std::span<const LoraBranch> lora) {
  constexpr std::int64_t kAlignment = 16;
  std::int64_t ranks = 0;
  for (const LoraBranch& branch : lora) ranks += branch.rank();
  return (ranks + kAlignment - 1) / kAlignment * kAlignment;
}

// Carves the stacks of all branches on a linear with `out` outputs: rows as the columns of u, the last branch's with
// the padding.
inline void take_stacks(Carver& carver, std::span<LoraBranch> lora, DType dtype, std::int64_t out) {
  if (lora.empty()) return;
  const std::int64_t ranks = adapter_columns(lora);
  const View a = carver.take(dtype, 1, ranks, lora.front().a.cols);
  const View b = carver.take(dtype, 1, ranks, out);
  std::int64_t first = 0;
  for (LoraBranch& branch : lora) {
    const std::int64_t rows = &branch == &lora.back() ? ranks - first : branch.rank();
    branch.stacked_a = a.row_slice(first, rows);
    branch.stacked_b = b.row_slice(first, rows);
    first += rows;
  }
}

// At most one epilogue applies: GELU (act set) or gate + residual (sum set). If y, act and sum are all empty, only u is
// computed.
struct LinearForward {
  ConstView x;                       // [B, T, in]
  const Weight& weight;              // [out, in]
  std::span<const LoraBranch> lora;  // all on this linear
  View u;                            // [B, T, adapter_columns(lora)]: that of each branch in turn, saved for backward
  bool u_known = false;              // u holds what another call computed from this x: it is only read
  View y;                            // [B, T, out] before the epilogue; may be empty when an epilogue is set
  // GELU (tanh form) of output columns [gelu_begin, out), written to act [B, T, out - gelu_begin].
  View act;
  std::int64_t gelu_begin = 0;
  // sum = residual + gate * y. sum may be the same view as residual.
  ConstView gate;      // [B, 1, out]
  ConstView residual;  // [B, T, out]
  View sum;            // [B, T, out]
};

struct LinearBackward {
  ConstView dy;  // [B, T, out]
  ConstView x;   // [B, T, in]; needed only if a branch is trained
  const Weight& weight;
  std::span<const LoraBranch> lora;         // da, db of trained branches accumulate
  ConstView u;                              // as saved; needed only if a branch is trained
  View dx;                                  // [B, T, in]; empty when nobody reads it
  Accumulate accumulate = Accumulate::kNo;  // of dx
};

// y = (1 + scale) * (x - mean) / sqrt(var + eps) + shift over the features; biased variance.
struct ModulatedNorm {
  ConstView x;             // [B, T, C]
  ConstView scale, shift;  // [B, 1, C]
  float epsilon = 1e-6F;
  View y;  // [B, T, C]
};
struct ModulatedNormBackward {
  ConstView dy, x, scale;
  float epsilon = 1e-6F;
  View dx;                                  // [B, T, C]; may be empty
  Accumulate accumulate = Accumulate::kNo;  // of dx
  View dscale, dshift;                      // [B, 1, C], written (=); may be empty
};

// Per head of D = gain.cols features: y = rope(gain * x / sqrt(mean(x^2) + eps)). RoPE turns the adjacent pairs
// (2p, 2p + 1) by the angles whose cosines and sines are given; row t of x uses row t of cosine and sine.
struct NormRope {
  ConstView x;             // [B, T, H * D]
  ConstView gain;          // [1, 1, D]
  ConstView cosine, sine;  // [1, T, D / 2] F32
  float epsilon = 1e-6F;
  View y;  // [B, T, H * D]
};
struct NormRopeBackward {
  ConstView dy, x, gain, cosine, sine;
  float epsilon = 1e-6F;
  View dx;  // [B, T, H * D], written (=); may be the same view as dy
};

// o = softmax(scale * q k^T + bias) v per head.
struct Attention {
  ConstView q, k, v;  // [B, L, H * D]
  std::int64_t heads = 1;
  float scale = 1.0F;
  bool causal = false;  // query i sees keys 0..i
  ConstView bias;       // [H, L, L] F32 added to the scores, or empty (forward only)
  // Optional: keys in [valid_keys[b], masked_end) of sample b are seen by nobody (padded text before image tokens).
  std::span<const std::int64_t> valid_keys;  // [B] or empty
  std::int64_t masked_end = 0;
  View o;            // [B, L, H * D]
  View log_sum_exp;  // [B, H, L] F32, saved for backward; may be empty
};
struct AttentionBackward {
  ConstView d_o, q, k, v, o, log_sum_exp;
  std::int64_t heads = 1;
  float scale = 1.0F;
  bool causal = false;
  std::span<const std::int64_t> valid_keys;
  std::int64_t masked_end = 0;
  View dq, dk, dv;  // [B, L, H * D], written (=)
};

// Convolution of images [B, height * width, in] with weights [1, out, in * k * k]; zero padding `before` at the left
// and top and `after` at the right and bottom. y is [B, out_height * out_width, out] with
// out_height = (upsample * height + before + after - k) / stride + 1 and likewise for the width. With upsample = 2
// every pixel first stands for 2 x 2.
struct Convolution {
  ConstView x;
  std::int64_t height = 0, width = 0;
  ConstView weight;
  ConstView bias;  // [1, 1, out]
  std::int64_t kernel = 3, stride = 1, before = 1, after = 1, upsample = 1;
  ConstView residual;  // of the type of y, added to the result; may be empty
  View y;
};

// Normalisation of images [B, pixels, C] over groups of C / groups channels with biased variance, then per-channel
// gain and bias [1, 1, C], then SiLU if asked.
struct GroupNorm {
  ConstView x;
  std::int64_t groups = 32;
  float epsilon = 1e-6F;
  ConstView gain, bias;
  bool silu = false;
  View y;
};

enum class Activation : std::uint8_t { kSilu, kGeluTanh, kQuickGelu };

enum class LossKind : std::uint8_t { kSquared, kHuber };

// Loss of every sample: loss[b] = mean over rows and cols of w[b, t] f(prediction - target), and, if dprediction is
// wanted, dprediction = gradient_weight[b] times the derivative of that.
// f(d) = d^2, or the pseudo-Huber form 2 c (sqrt(d^2 + c^2) - c): d^2 where d is small against c, 2 c |d| where large.
struct FlowLoss {
  ConstView prediction, target;  // [B, T, C]
  ConstView weight;              // w [B, T, 1] F32; empty: 1 everywhere
  LossKind kind = LossKind::kSquared;
  float huber_c = 0.1F;
  std::span<const float> gradient_weight;  // [B], needed with dprediction only
  std::span<float> loss;                   // [B]
  View dprediction;                        // [B, T, C]; may be empty
};

// The moments m and v are float32, or 8-bit codes q with one float32 scale for each block of kMomentBlock values:
// m = scale sign(q) (q / 127)^2 (I8) and sqrt(v) = scale (q / 255)^2 (U8), where scale is the largest in the block. A
// value between two codes becomes either of them, by a hash of step and index and with the probabilities that keep it
// right on average: rounding to nearest would lose all that changes by less than half a code a step. A v that is not 0
// never becomes 0, as m / sqrt(v) would be unbounded.
inline constexpr std::int64_t kMomentBlock = 256;

struct AdamW {
  View parameters;                  // [1, 1, n] F32 masters, updated
  View gradients;                   // [1, 1, n]; multiplied by gradient_scale before use
  View mean, variance;              // [1, 1, n] m and v, updated; F32, or codes I8 and U8
  View mean_scale, variance_scale;  // [1, 1, ceil(n / kMomentBlock)] F32 of codes, updated; else empty
  float gradient_scale = 1.0F;
  float learning_rate = 1e-4F;
  float beta1 = 0.9F, beta2 = 0.999F;
  float epsilon = 1e-8F;
  float weight_decay = 0.01F;  // decoupled (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019)
  std::int64_t step = 1;       // counted from 1, for the bias corrections
};

class Ops {
 public:
  virtual ~Ops() = default;

  virtual DType activation_type() const = 0;

  // Bytes of scratch memory that the operations in `calls` need at most. They are rehearsed: nothing is computed, and
  // views need shapes but no memory behind them. 0 where a backend keeps scratch of its own (the CPU).
  virtual std::size_t scratch_need(const std::function<void()>& calls) = 0;
  // The scratch memory of the operations that follow.
  virtual void use_scratch(View scratch) = 0;

  // Chooses, where a backend has several ways to compute the same, the fastest for the operations rehearsed last, by
  // timing them in `memory`, whose content is lost. Ways that are known already are not timed again.
  virtual void tune(View memory) { static_cast<void>(memory); }

  // Writes stacked_a and stacked_b of branches of any number of linears, after their a or b changed.
  virtual void stack_adapters(std::span<const LoraBranch> lora) { static_cast<void>(lora); }

  // Shape and type of the copy of a weight that products on many rows read in place of what is stored, expanded or
  // transposed; an empty view where they read what is stored. Without the copy they make it at each use: memory spent
  // on it saves time, and results are the same bits.
  virtual View prepared_form(const Weight& weight) const;
  // Do products of the forward pass read such copies, or only those of the backward pass?
  virtual bool forward_reads_prepared() const { return false; }
  // Writes that copy.
  virtual void prepare(const Weight& weight, View to);

  virtual void linear(const LinearForward&) = 0;
  virtual void linear_backward(const LinearBackward&) = 0;

  virtual void modulated_norm(const ModulatedNorm&) = 0;
  virtual void modulated_norm_backward(const ModulatedNormBackward&) = 0;
  // y = gain * (x - mean) / sqrt(var + eps) + bias over the features; gain and bias [1, 1, C].
  virtual void layer_norm(ConstView x, ConstView gain, ConstView bias, float epsilon, View y) = 0;
  // y = gain * x / sqrt(mean(x^2) + eps) over the features.
  virtual void rms_norm(ConstView x, ConstView gain, float epsilon, View y) = 0;
  virtual void group_norm(const GroupNorm&) = 0;

  virtual void norm_rope(const NormRope&) = 0;
  virtual void norm_rope_backward(const NormRopeBackward&) = 0;

  virtual void attention(const Attention&) = 0;
  virtual void attention_backward(const AttentionBackward&) = 0;

  virtual void convolution(const Convolution&) = 0;

  // y = f(x); y may be x. With `times` (same shape as x, may be empty): y = f(x) * times.
  virtual void activation(Activation f, ConstView x, ConstView times, View y) = 0;
  // dx = dy * f'(x) (or +=). dx may be dy when not accumulating.
  virtual void activation_backward(Activation f, ConstView dy, ConstView x, View dx, Accumulate accumulate) = 0;

  // Backward of sum = residual + gate * y: dy = dsum * gate; and, if dgate [B, 1, C] is wanted, dgate = sum over
  // rows of dsum * y (written). y is read only for dgate.
  virtual void gate_backward(ConstView dsum, ConstView gate, ConstView y, View dy, View dgate) = 0;

  // Row t of sample b of y = row ids[b * T + t] of table [1, n, C] (any floating type). An id outside the table
  // throws FormatError.
  virtual void gather(ConstView table, std::span<const std::int32_t> ids, View y) = 0;

  // y[b] = cat(cos a, sin a), a_j = 1000 * values[b] * 10000^(-j / half), half = y.cols / 2 (spec of FLUX: 256
  // features, cosines first). Angles in float64. y is [B, 1, features].
  virtual void sinusoid(std::span<const float> values, View y) = 0;

  // y [B, C, R] = the transpose of each sample of x [B, R, C].
  virtual void transpose(ConstView x, View y) = 0;

  // y = x, or y += x.
  virtual void copy(ConstView x, View y, Accumulate accumulate) = 0;
  virtual void fill(View y, float value) = 0;

  virtual void flow_loss(const FlowLoss&) = 0;

  // Sum of squares of all elements of a contiguous view, accumulated in float64.
  virtual double sum_of_squares(ConstView x) = 0;
  virtual void adamw(const AdamW&) = 0;
  // y += weight * (x - y); float32.
  virtual void lerp(ConstView x, float weight, View y) = 0;

  // What was chosen at run time and can change the last bits of results, such as the algorithms of matrix products, as
  // text without line breaks; and the same choices again. Empty where all follows from shapes. restore_ throws
  // FormatError if the text is not one of this backend.
  virtual std::string kernel_choices() const { return {}; }
  virtual void restore_kernel_choices(std::string_view choices);
};

// The CPU backend: plain loops, matrix products through OpenBLAS, `threads` of its own (0: one per hardware thread).
std::unique_ptr<Ops> make_cpu_ops(int threads = 0);

}  // namespace squareq
