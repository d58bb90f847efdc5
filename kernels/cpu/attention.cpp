#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/vector_math.h"

namespace squareq {
namespace {

constexpr std::int64_t kQueryBlock = 128;
constexpr float kNever = -std::numeric_limits<float>::infinity();

template <class Params>
void check_shapes(const Params& p) {
  require(p.heads > 0 && p.q.cols % p.heads == 0 && same_shape(p.q, p.k) && same_shape(p.q, p.v), "attention: shapes");
  require(p.valid_keys.empty() || static_cast<std::int64_t>(p.valid_keys.size()) == p.q.batch,
          "attention: one count of valid keys per sample");
  for (const std::int64_t valid : p.valid_keys) {
    require(valid >= 0 && p.masked_end <= p.q.rows && (valid > 0 || p.masked_end < p.q.rows),
            "attention: mask leaves no key");
  }
}

// One head of one sample, and one block of its queries.
struct Block {
  std::int64_t b, column, features, query, queries, keys;

  Gemm scores(ConstView q, ConstView k, float scale, float* out) const {  // scale * q k^T
    return {.transpose_b = Transpose::kYes,
            .m = queries,
            .n = keys,
            .k = features,
            .alpha = scale,
            .a = q.f32(b, query) + column,
            .lda = q.row_stride,
            .b = k.f32(b) + column,
            .ldb = k.row_stride,
            .c = out,
            .ldc = keys};
  }
  Gemm rows_times(float alpha, const float* scores, ConstView keys_side, View out) const {  // scores [queries, keys]
    return {.m = queries,
            .n = features,
            .k = keys,
            .alpha = alpha,
            .a = scores,
            .lda = keys,
            .b = keys_side.f32(b) + column,
            .ldb = keys_side.row_stride,
            .c = out.f32(b, query) + column,
            .ldc = out.row_stride};
  }
  Gemm columns_times(float alpha, const float* scores, ConstView query_side, View out) const {  // += over blocks
    return {.transpose_a = Transpose::kYes,
            .m = keys,
            .n = features,
            .k = queries,
            .alpha = alpha,
            .a = scores,
            .lda = keys,
            .b = query_side.f32(b, query) + column,
            .ldb = query_side.row_stride,
            .beta = query == 0 ? 0.0F : 1.0F,
            .c = out.f32(b) + column,
            .ldc = out.row_stride};
  }
};

// Sets the scores of query `i` that the mask forbids to minus infinity.
template <class Params>
void mask(const Params& p, const Block& block, std::int64_t i, float* row) {
  if (!p.valid_keys.empty()) {
    const std::int64_t begin = p.valid_keys[static_cast<std::size_t>(block.b)];
    for (std::int64_t key = begin; key < p.masked_end; ++key) row[key] = kNever;
  }
  for (std::int64_t key = i + 1; p.causal && key < block.keys; ++key) row[key] = kNever;
}

}  // namespace

void CpuOps::attention(const Attention& p) {
  check_shapes(p);
  const std::int64_t length = p.q.rows;
  require(same_shape(p.q, p.o), "attention: output does not fit");
  require(!p.bias || (p.bias.batch == p.heads && p.bias.rows == length && p.bias.cols == length),
          "attention: bias does not fit");
  require(!p.log_sum_exp ||
              (p.log_sum_exp.batch == p.q.batch && p.log_sum_exp.rows == p.heads && p.log_sum_exp.cols == length),
          "attention: log_sum_exp does not fit");
  const std::int64_t blocks = ceil_div(length, kQueryBlock);
  const std::int64_t features = p.q.cols / p.heads;
  pool_.parallel_for(p.q.batch * p.heads * blocks, [&](std::int64_t task, int worker_index) {
    const std::int64_t head = task / blocks % p.heads;
    const std::int64_t query = task % blocks * kQueryBlock;
    const Block block{
        task / blocks / p.heads, head * features, features, query, std::min(kQueryBlock, length - query), length};
    Worker& own = worker(worker_index);
    float* scores = own.scores.at_least(block.queries * length);
    float* inverse_sums = own.row.at_least(block.queries);
    gemm(block.scores(p.q, p.k, p.scale, scores));
    for (std::int64_t i = 0; i < block.queries; ++i) {
      float* row = scores + i * length;
      if (p.bias) {
        const float* bias = p.bias.f32(head, query + i);
        for (std::int64_t key = 0; key < length; ++key) row[key] += bias[key];
      }
      mask(p, block, query + i, row);
      const float largest = lane_max(row, length);
      for (std::int64_t key = 0; key < length; ++key) row[key] = fast_exp(row[key] - largest);
      const float sum = lane_sum(length, [&](std::int64_t key) { return row[key]; });
      inverse_sums[i] = 1.0F / sum;
      if (p.log_sum_exp) p.log_sum_exp.f32(block.b, head)[query + i] = largest + std::log(sum);
    }
    gemm(block.rows_times(1.0F, scores, p.v, p.o));
    for (std::int64_t i = 0; i < block.queries; ++i) {
      float* o = p.o.f32(block.b, query + i) + block.column;
      for (std::int64_t c = 0; c < features; ++c) o[c] *= inverse_sums[i];
    }
  });
}

void CpuOps::attention_backward(const AttentionBackward& p) {
  check_shapes(p);
  const std::int64_t length = p.q.rows;
  for (const ConstView& v : {p.d_o, p.o, ConstView(p.dq), ConstView(p.dk), ConstView(p.dv)}) {
    require(same_shape(v, p.q), "attention_backward: shapes");
  }
  require(p.log_sum_exp.batch == p.q.batch && p.log_sum_exp.rows == p.heads && p.log_sum_exp.cols == length,
          "attention_backward: log_sum_exp does not fit");
  const std::int64_t features = p.q.cols / p.heads;
  pool_.parallel_for(p.q.batch * p.heads, [&](std::int64_t task, int worker_index) {
    const std::int64_t head = task % p.heads;
    Worker& own = worker(worker_index);
    for (std::int64_t query = 0; query < length; query += kQueryBlock) {
      const Block block{task / p.heads, head * features, features, query, std::min(kQueryBlock, length - query),
                        length};
      float* probability = own.scores.at_least(block.queries * length);
      float* ds = own.more_scores.at_least(block.queries * length);
      gemm(block.scores(p.q, p.k, p.scale, probability));
      gemm(block.scores(p.d_o, p.v, 1.0F, ds));
      const float* log_sum_exp = p.log_sum_exp.f32(block.b, head) + query;
      for (std::int64_t i = 0; i < block.queries; ++i) {
        float* row = probability + i * length;
        float* ds_row = ds + i * length;
        mask(p, block, query + i, row);
        const float* d_o = p.d_o.f32(block.b, query + i) + block.column;
        const float* o = p.o.f32(block.b, query + i) + block.column;
        const float delta = lane_sum(features, [&](std::int64_t c) { return d_o[c] * o[c]; });
        const float subtract = log_sum_exp[i];
        for (std::int64_t key = 0; key < length; ++key) {
          row[key] = fast_exp(row[key] - subtract);
          ds_row[key] = row[key] * (ds_row[key] - delta);
        }
      }
      gemm(block.columns_times(1.0F, probability, p.d_o, p.dv));
      gemm(block.rows_times(p.scale, ds, p.k, p.dq));
      gemm(block.columns_times(p.scale, ds, p.q, p.dk));
    }
  });
}

}  // namespace squareq
