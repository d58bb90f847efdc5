// Softmax attention without its matrix of scores in memory: blocks of keys pass by a block of queries, whose running
// maximum, sum and output are rescaled as they go (Dao, "FlashAttention-2: Faster attention with better parallelism and
// work partitioning", 2023, algorithm 1).
#include "kernels/cuda/attention_pack.cuh"
#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/cuda_ops.h"

namespace squareq::cuda {
namespace {

struct ForwardArguments {
  Rows<const __nv_bfloat16> q, k, v;
  Rows<__nv_bfloat16> o;
  Rows<const float> bias;   // [heads, length, length], or null
  Rows<float> log_sum_exp;  // [batch, heads, length], or null
  int features = 0;         // of a head
  float scale = 1.0F;
  tile::Sight sight;
};

// Heads of up to kFeatures features; a block of kWarps warps computes kColumns output columns of 16 * kRowBlocks
// queries a warp, kKeys keys at a time. kResident blocks share a multiprocessor, which bounds the registers.
template <int kFeatures_, int kColumns_, int kRowBlocks_, int kWarps, int kKeys_, int kResident_>
struct ForwardShape {
  static constexpr int kFeatures = kFeatures_, kColumns = kColumns_, kRowBlocks = kRowBlocks_, kKeys = kKeys_;
  static constexpr int kResident = kResident_;
  static constexpr int kThreads = kWarps * tile::kWarp, kWarpQueries = 16 * kRowBlocks;
  static constexpr int kQueries = kWarps * kWarpQueries;
  // With one block of rows a warp, its queries fit into registers: that saves a fifth of the reads of shared memory.
  static constexpr bool kHoldQueries = kRowBlocks == 1 && kFeatures <= 128;
  using Q = tile::Tile<kQueries, kFeatures>;
  using K = tile::Tile<kKeys, kFeatures>;
  using V = tile::Tile<kKeys, kColumns>;
  static constexpr int kSharedBytes = Q::kBytes + K::kBytes + V::kBytes;
};

// Running softmax of the rows a lane holds parts of: [m][0] is row lane / 4 of row block m, [m][1] eight rows below.
template <int kRowBlocks>
struct Softmax {
  float largest[kRowBlocks][2], sum[kRowBlocks][2];  // sum is over this lane's columns only

  __device__ Softmax() {
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
      largest[m][0] = largest[m][1] = -INFINITY;
      sum[m][0] = sum[m][1] = 0.0F;
    }
  }

  // Turns scores into 2^(factor * (score - largest)), and rescales what was summed before.
  template <int kColumnBlocks, int kOutputBlocks>
  __device__ void take(tile::Sums (&scores)[kRowBlocks][kColumnBlocks], tile::Sums (&o)[kRowBlocks][kOutputBlocks],
                       float factor) {
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) take_row(scores[m], o[m], m, half, factor);
    }
  }

  // Over all columns.
  __device__ float total(int m, int half) const {
    float s = sum[m][half];
    s += __shfl_xor_sync(0xffffffffU, s, 1);
    return s + __shfl_xor_sync(0xffffffffU, s, 2);
  }

 private:
  template <int kColumnBlocks, int kOutputBlocks>
  __device__ void take_row(tile::Sums (&scores)[kColumnBlocks], tile::Sums (&o)[kOutputBlocks], int m, int half,
                           float factor) {
    float now = largest[m][half];
#pragma unroll
    for (int n = 0; n < kColumnBlocks; ++n) now = fmaxf(now, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    now = fmaxf(now, __shfl_xor_sync(0xffffffffU, now, 1));
    now = fmaxf(now, __shfl_xor_sync(0xffffffffU, now, 2));
    // A row that has seen no key yet has only scores of minus infinity: any other number keeps them from being NaN.
    const float subtract = now == -INFINITY ? 0.0F : now * factor;
    const float shrink = tile::power_of_2(largest[m][half] * factor - subtract);
    largest[m][half] = now;
    float added = 0.0F;
#pragma unroll
    for (int n = 0; n < kColumnBlocks; ++n) {
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        scores[n][e] = tile::power_of_2(fmaf(scores[n][e], factor, -subtract));
        added += scores[n][e];
      }
    }
    sum[m][half] = fmaf(sum[m][half], shrink, added);
#pragma unroll
    for (int n = 0; n < kOutputBlocks; ++n) {
      o[n][2 * half] *= shrink;
      o[n][2 * half + 1] *= shrink;
    }
  }
};

// scores = scale * scores + bias, for rows from `query` and keys from `key` on.
template <int kRowBlocks, int kColumnBlocks>
__device__ void add_bias(tile::Sums (&scores)[kRowBlocks][kColumnBlocks], const ForwardArguments& p, int head,
                         int query, int key) {
#pragma unroll
  for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = min(query + m * 16 + half * 8 + tile::lane() / 4, p.sight.length - 1);
      const float* bias = p.bias(head, row);
#pragma unroll
      for (int n = 0; n < kColumnBlocks; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = min(key + n * 8 + tile::lane() % 4 * 2 + e, p.sight.length - 1);
          scores[m][n][2 * half + e] = fmaf(scores[m][n][2 * half + e], p.scale, bias[column]);
        }
      }
    }
  }
}

// Block x of the queries, head (and slice of output columns) y, sample z. The next keys are copied while the values
// multiply, and the values while the keys multiply.
template <class Shape, bool kBias>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kResident)
    attention_kernel(const __grid_constant__ ForwardArguments p) {
  using Q = typename Shape::Q;
  using K = typename Shape::K;
  using V = typename Shape::V;
  extern __shared__ __align__(1024) unsigned char attention_shared[];
  const int slices = Shape::kColumns == Shape::kFeatures ? 1 : (p.features + Shape::kColumns - 1) / Shape::kColumns;
  const int sample = static_cast<int>(blockIdx.z), head = static_cast<int>(blockIdx.y) / slices;
  const int column = static_cast<int>(blockIdx.y) % slices * Shape::kColumns;
  const int block_query = static_cast<int>(blockIdx.x) * Shape::kQueries;
  const int query = block_query + tile::warp() * Shape::kWarpQueries;
  const auto head_of = [&](const Rows<const __nv_bfloat16>& x) {
    return tile::source(x, sample, head, p.sight.length, p.features);
  };
  const std::uint32_t q_tile = tile::shared_address(attention_shared);
  const std::uint32_t k_tile = q_tile + Q::kBytes, v_tile = k_tile + K::kBytes;
  const tile::KeyBlocks<Shape::kKeys> keys(p.sight, sample, block_query + Shape::kQueries);

  Q::template load<Shape::kThreads>(q_tile, head_of(p.q), block_query);
  K::template load<Shape::kThreads>(k_tile, head_of(p.k), keys.at(0));
  tile::commit_copies();
  std::uint32_t q_at = Q::rows_first(q_tile) + tile::warp() * Shape::kWarpQueries * Q::kRowBytes;
  std::uint32_t k_at = K::features_first(k_tile), v_at = V::rows_first(v_tile);
  const float factor = kBias ? tile::kLog2E : p.scale * tile::kLog2E;

  tile::Sums o[Shape::kRowBlocks][Shape::kColumns / 8];
  tile::clear(o);
  Softmax<Shape::kRowBlocks> softmax;
  tile::Left held[Shape::kHoldQueries ? Shape::kFeatures / 16 : 1];
  if constexpr (Shape::kHoldQueries) {
    tile::wait_copies<0>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < Shape::kFeatures / 16; ++k) tile::read(held[k], Q::block(q_at, 0, k * 16));
  }
  for (int i = 0; i < keys.count; ++i) {
    const int key = keys.at(i);
    tile::keep_in_loop(q_at, k_at, v_at);
    tile::wait_copies<0>();
    __syncthreads();
    V::template load<Shape::kThreads>(v_tile, head_of(p.v), key, column);
    tile::commit_copies();
    tile::Sums scores[Shape::kRowBlocks][Shape::kKeys / 8];
    if constexpr (Shape::kHoldQueries) {
      tile::product_transposed<K>(scores, held, k_at);
    } else {
      tile::product_transposed<Q, K>(scores, q_at, k_at);
    }
    tile::wait_copies<0>();
    __syncthreads();
    if (i + 1 < keys.count) K::template load<Shape::kThreads>(k_tile, head_of(p.k), keys.at(i + 1));
    tile::commit_copies();
    if constexpr (kBias) add_bias(scores, p, head, query, key);
    tile::hide(scores, p.sight, sample, query, key);
    softmax.take(scores, o, factor);
    tile::add_product<V>(o, scores, v_at);
  }
  tile::wait_copies<0>();

#pragma unroll
  for (int m = 0; m < Shape::kRowBlocks; ++m) {
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = softmax.total(m, half);
      inverse[half] = total > 0.0F ? 1.0F / total : 0.0F;
      const int row = query + m * 16 + half * 8 + tile::lane() / 4;
      if (p.log_sum_exp.data != nullptr && column == 0 && tile::lane() % 4 == 0 && row < p.sight.length) {
        p.log_sum_exp(sample, head)[row] = (softmax.largest[m][half] * factor + log2f(total)) * tile::kLn2;
      }
    }
    tile::store(o[m], p.o(sample, 0) + static_cast<std::int64_t>(head) * p.features + column, p.o.row_stride,
                query + m * 16, p.sight.length, p.features - column, inverse[0], inverse[1]);
  }
}

template <class Shape, bool kBias>
void launch_attention(const ForwardArguments& p, std::int64_t heads, std::int64_t samples, cudaStream_t stream) {
  allow_shared_memory(attention_kernel<Shape, kBias>, Shape::kSharedBytes);
  const dim3 grid(ceil_div(p.sight.length, Shape::kQueries),
                  static_cast<unsigned>(heads) * ceil_div(p.features, Shape::kColumns), static_cast<unsigned>(samples));
  attention_kernel<Shape, kBias><<<grid, Shape::kThreads, Shape::kSharedBytes, stream>>>(p);
  check_launch("attention_kernel");
}

// Every shape fits the 99 KiB of shared memory that a block of sm_86 and sm_89 may have. Heads of more than 128
// features (the autoencoder) are too wide for one warp's registers: two blocks compute half of the output columns each,
// both from all scores. The addresses of a bias (T5) take registers too.
void launch_attention(const ForwardArguments& p, std::int64_t heads, std::int64_t samples, cudaStream_t stream) {
  if (p.bias.data != nullptr) {
    if (p.features <= 64) return launch_attention<ForwardShape<64, 64, 1, 8, 64, 1>, true>(p, heads, samples, stream);
    return launch_attention<ForwardShape<512, 256, 1, 4, 16, 1>, true>(p, heads, samples, stream);
  }
  if (p.features <= 32) return launch_attention<ForwardShape<32, 32, 2, 4, 64, 2>, false>(p, heads, samples, stream);
  if (p.features <= 64) return launch_attention<ForwardShape<64, 64, 2, 4, 64, 2>, false>(p, heads, samples, stream);
  if (p.features <= 128)
    return launch_attention<ForwardShape<128, 128, 1, 8, 128, 1>, false>(p, heads, samples, stream);
  launch_attention<ForwardShape<512, 256, 1, 4, 16, 2>, false>(p, heads, samples, stream);
}

void check_shapes(const Attention& p) {
  check_attention_shapes(p);
  require(p.q.cols / p.heads <= 512, "attention: more than 512 features a head");
  require(same_shape(p.q, p.o), "attention: output does not fit");
  require(!p.bias || (p.bias.dtype == DType::F32 && p.bias.batch == p.heads && p.bias.rows == p.q.rows &&
                      p.bias.cols == p.q.rows),
          "attention: bias does not fit");
  require(!p.log_sum_exp || (p.log_sum_exp.dtype == DType::F32 && p.log_sum_exp.batch == p.q.batch &&
                             p.log_sum_exp.rows == p.heads && p.log_sum_exp.cols == p.q.rows),
          "attention: log_sum_exp does not fit");
}

}  // namespace

void CudaOps::attention(const Attention& p) {
  check_shapes(p);
  if (run_cudnn(p, 2)) return;
  Scratch scratch(*this);
  const auto q = take_heads(scratch, p.q, p.heads), k = take_heads(scratch, p.k, p.heads),
             v = take_heads(scratch, p.v, p.heads);
  const auto o = take_heads(scratch, p.o, p.heads);
  if (scratch.rehearsing() || p.q.count() == 0) return;
  const ProfileSpan span = timed(KernelFamily::kAttention, attention_operations(p.q, 2));
  for (const auto& x : {q, k, v}) pack(x, p.heads, stream_);
  for_sample_groups(p.q.batch, [&](std::int64_t first, std::int64_t samples) {
    const ForwardArguments arguments{.q = from_sample(q.rows(), first),
                                     .k = from_sample(k.rows(), first),
                                     .v = from_sample(v.rows(), first),
                                     .o = from_sample(o.rows(), first),
                                     .bias = rows_of<float>(p.bias),
                                     .log_sum_exp = from_sample(rows_of<float>(p.log_sum_exp), first),
                                     .features = static_cast<int>(padded_features(p.q.cols / p.heads)),
                                     .scale = p.scale,
                                     .sight = sight_of(p, first, samples)};
    launch_attention(arguments, p.heads, samples, stream_);
  });
  unpack(o, p.heads, stream_);
}

}  // namespace squareq::cuda
