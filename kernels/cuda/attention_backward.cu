// The backward of softmax attention from its inputs, its output and the logarithms of its sums (Dao, "FlashAttention-2:
// Faster attention with better parallelism and work partitioning", 2023, algorithm 2). With p = exp(scale * q k^T -
// lse), dp = do v^T, delta = sum of do * o over features and ds = p * (dp - delta):
//   dv = p^T do, dk = scale * ds^T q, dq = scale * ds k.
// Where the paper adds up dq with atomics, here a kernel of its own computes the scores again: two products more, but a
// sum in the same order every time.
#include "kernels/cuda/attention_pack.cuh"
#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/cuda_ops.h"

namespace squareq::cuda {
namespace {

constexpr int kRowPadding = 128;  // rows of statistics are a multiple of this

struct BackwardArguments {
  Rows<const __nv_bfloat16> d_o, q, k, v, o;
  Rows<const float> log_sum_exp;
  // [batch, heads, padded length]: log_sum_exp / ln 2, infinity where nothing is to be seen; delta.
  Rows<float> log2_sum, delta;
  Rows<__nv_bfloat16> dq, dk, dv;
  int heads = 1;
  int features = 0;  // of a head
  float scale = 1.0F;
  tile::Sight sight;

  __device__ tile::Source source(const Rows<const __nv_bfloat16>& x, int sample, int head) const {
    return tile::source(x, sample, head, sight.length, features);
  }
  __device__ __nv_bfloat16* head_of(const Rows<__nv_bfloat16>& x, int sample, int head) const {
    return x(sample, 0) + static_cast<std::int64_t>(head) * features;
  }
};

// Eight lanes a row of a head; blocks along rows, heads and samples.
__global__ void attention_delta_kernel(const __grid_constant__ BackwardArguments p, int padded_length) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) / 8;
  const int head = static_cast<int>(blockIdx.y), sample = static_cast<int>(blockIdx.z);
  float sum = 0.0F;
  if (row < p.sight.length) {
    const __nv_bfloat16* d_o = p.d_o(sample, row) + static_cast<std::int64_t>(head) * p.features;
    const __nv_bfloat16* o = p.o(sample, row) + static_cast<std::int64_t>(head) * p.features;
    for (int c = static_cast<int>(threadIdx.x) % 8 * 8; c < p.features; c += 64) {
      const uint4 a = *reinterpret_cast<const uint4*>(d_o + c), b = *reinterpret_cast<const uint4*>(o + c);
      for (const auto& [x, y] : {std::pair(a.x, b.x), std::pair(a.y, b.y), std::pair(a.z, b.z), std::pair(a.w, b.w)}) {
        sum = fmaf(__uint_as_float(x << 16), __uint_as_float(y << 16), sum);
        sum = fmaf(__uint_as_float(x & 0xffff0000U), __uint_as_float(y & 0xffff0000U), sum);
      }
    }
  }
  for (int other = 1; other < 8; other *= 2) sum += __shfl_xor_sync(0xffffffffU, sum, other);
  if (threadIdx.x % 8 != 0 || row >= padded_length) return;
  const float sums = row < p.sight.length ? p.log_sum_exp(sample, head)[row] : INFINITY;
  p.log2_sum(sample, head)[row] = sums == -INFINITY ? INFINITY : sums * tile::kLog2E;
  p.delta(sample, head)[row] = sum;
}

void launch_delta(const BackwardArguments& p, int padded_length, unsigned samples, cudaStream_t stream) {
  const dim3 grid(ceil_div(padded_length, 32), static_cast<unsigned>(p.heads), samples);
  attention_delta_kernel<<<grid, 256, 0, stream>>>(p, padded_length);
  check_launch("attention_delta_kernel");
}

// A block of kWarps warps computes dk and dv of 16 keys a warp; kQueries queries pass by.
template <int kFeatures_, int kWarps, int kQueries_, int kResident_>
struct KeyShape {
  static constexpr int kFeatures = kFeatures_, kQueries = kQueries_, kResident = kResident_;
  static constexpr int kThreads = kWarps * tile::kWarp, kKeys = kWarps * 16;
  using Keys = tile::Tile<kKeys, kFeatures>;
  using Queries = tile::Tile<kQueries, kFeatures>;
  // Of each of two stages: q, do, log2_sum, delta.
  static constexpr int kStageBytes = 2 * Queries::kBytes, kStatisticsBytes = 2 * kQueries * 4;
  static constexpr int kSharedBytes = 2 * Keys::kBytes + 2 * kStageBytes + 2 * kStatisticsBytes;
  static_assert(kRowPadding % kQueries == 0 && kQueries % 4 == 0);
};

// Starts to copy the statistics of kQueries queries.
template <int kQueries>
__device__ void load_statistics(std::uint32_t to, const float* log2_sum, const float* delta) {
  constexpr int kChunks = kQueries / 4;
  const int i = static_cast<int>(threadIdx.x);
  if (i >= 2 * kChunks) return;
  tile::copy_chunk(to + static_cast<std::uint32_t>(i * 16), i < kChunks ? log2_sum + i * 4 : delta + (i - kChunks) * 4,
                   true);
}

// From the transposed scores and dp (a row a key, a column a query) to p and ds. `statistics` are those of the queries.
template <int kColumnBlocks>
__device__ void transposed_gradient(tile::Sums (&scores)[1][kColumnBlocks], tile::Sums (&dp)[1][kColumnBlocks],
                                    const float* statistics, float factor) {
#pragma unroll
  for (int n = 0; n < kColumnBlocks; ++n) {
    const int column = n * 8 + tile::lane() % 4 * 2;
    const float2 log2_sum = *reinterpret_cast<const float2*>(statistics + column);
    const float2 delta = *reinterpret_cast<const float2*>(statistics + kColumnBlocks * 8 + column);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      scores[0][n][e] = tile::power_of_2(fmaf(scores[0][n][e], factor, e % 2 == 0 ? -log2_sum.x : -log2_sum.y));
      dp[0][n][e] = scores[0][n][e] * (dp[0][n][e] - (e % 2 == 0 ? delta.x : delta.y));
    }
  }
}

// Minus infinity for queries before the key.
template <int kColumnBlocks>
__device__ void hide_earlier(tile::Sums (&scores)[1][kColumnBlocks], int key, int query) {
  if (query >= key + 15) return;
#pragma unroll
  for (int n = 0; n < kColumnBlocks; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = key + tile::lane() / 4 + e / 2 * 8, column = query + n * 8 + tile::lane() % 4 * 2 + e % 2;
      if (column < row) scores[0][n][e] = -INFINITY;
    }
  }
}

// Block x of the keys, head y, sample z. Keys that nobody sees get zeros at the end; until then they disturb no others.
template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kResident)
    attention_key_gradient_kernel(const __grid_constant__ BackwardArguments p) {
  using Keys = typename Shape::Keys;
  using Queries = typename Shape::Queries;
  extern __shared__ __align__(1024) unsigned char attention_shared[];
  const int sample = static_cast<int>(blockIdx.z), head = static_cast<int>(blockIdx.y);
  const int block_key = static_cast<int>(blockIdx.x) * Shape::kKeys, key = block_key + tile::warp() * 16;
  const std::uint32_t k_tile = tile::shared_address(attention_shared), v_tile = k_tile + Keys::kBytes;
  const std::uint32_t stages = v_tile + Keys::kBytes, statistics = stages + 2 * Shape::kStageBytes;
  const auto load_queries = [&](int query, int stage) {
    const std::uint32_t at = stages + stage * Shape::kStageBytes;
    Queries::template load<Shape::kThreads>(at, p.source(p.q, sample, head), query);
    Queries::template load<Shape::kThreads>(at + Queries::kBytes, p.source(p.d_o, sample, head), query);
    load_statistics<Shape::kQueries>(statistics + stage * Shape::kStatisticsBytes, p.log2_sum(sample, head) + query,
                                     p.delta(sample, head) + query);
    tile::commit_copies();
  };
  const int first = p.sight.causal ? block_key / Shape::kQueries * Shape::kQueries : 0;
  Keys::template load<Shape::kThreads>(k_tile, p.source(p.k, sample, head), block_key);
  Keys::template load<Shape::kThreads>(v_tile, p.source(p.v, sample, head), block_key);
  load_queries(first, 0);
  std::uint32_t k_at = Keys::rows_first(k_tile) + tile::warp() * 16 * Keys::kRowBytes;

  tile::Sums dk[1][Shape::kFeatures / 8], dv[1][Shape::kFeatures / 8];
  tile::clear(dk);
  tile::clear(dv);
  int stage = 0;
  for (int query = first; query < p.sight.length; query += Shape::kQueries, stage ^= 1) {
    // An empty group of copies stands for the stage after the last, so that one group is under way each time.
    if (query + Shape::kQueries < p.sight.length) {
      load_queries(query + Shape::kQueries, stage ^ 1);
    } else {
      tile::commit_copies();
    }
    tile::wait_copies<1>();
    __syncthreads();
    tile::keep_in_loop(k_at);
    const std::uint32_t q_tile = stages + stage * Shape::kStageBytes, do_tile = q_tile + Queries::kBytes;
    tile::Sums scores[1][Shape::kQueries / 8], dp[1][Shape::kQueries / 8];
    tile::product_transposed<Keys, Queries>(scores, k_at, Queries::features_first(q_tile));
    tile::product_transposed<Keys, Queries>(dp, k_at + Keys::kBytes, Queries::features_first(do_tile));
    if (p.sight.causal) hide_earlier(scores, key, query);
    const unsigned char* in_stage = attention_shared + 2 * Keys::kBytes + 2 * Shape::kStageBytes;
    transposed_gradient(scores, dp, reinterpret_cast<const float*>(in_stage + stage * Shape::kStatisticsBytes),
                        p.scale * tile::kLog2E);
    tile::add_product<Queries>(dv, scores, Queries::rows_first(do_tile));
    tile::add_product<Queries>(dk, dp, Queries::rows_first(q_tile));
    __syncthreads();
  }
  tile::wait_copies<0>();

  const bool above = !p.sight.hidden(sample, key + tile::lane() / 4);
  const bool below = !p.sight.hidden(sample, key + tile::lane() / 4 + 8);
  tile::store_or_zero(dk[0], p.head_of(p.dk, sample, head), p.dk.row_stride, key, p.sight.length, p.features, p.scale,
                      above, below);
  tile::store_or_zero(dv[0], p.head_of(p.dv, sample, head), p.dv.row_stride, key, p.sight.length, p.features, 1.0F,
                      above, below);
}

template <class Shape>
void launch_key_gradient(const BackwardArguments& p, unsigned samples, cudaStream_t stream) {
  allow_shared_memory(attention_key_gradient_kernel<Shape>, Shape::kSharedBytes);
  const dim3 grid(ceil_div(p.sight.length, Shape::kKeys), static_cast<unsigned>(p.heads), samples);
  attention_key_gradient_kernel<Shape><<<grid, Shape::kThreads, Shape::kSharedBytes, stream>>>(p);
  check_launch("attention_key_gradient_kernel");
}

// A block of kWarps warps computes dq of 16 * kRowBlocks queries a warp; kKeys keys pass by.
template <int kFeatures_, int kRowBlocks_, int kWarps, int kKeys_, int kResident_>
struct QueryShape {
  static constexpr int kFeatures = kFeatures_, kRowBlocks = kRowBlocks_, kKeys = kKeys_, kResident = kResident_;
  static constexpr int kThreads = kWarps * tile::kWarp, kWarpQueries = 16 * kRowBlocks;
  static constexpr int kQueries = kWarps * kWarpQueries;
  using Queries = tile::Tile<kQueries, kFeatures>;
  using Keys = tile::Tile<kKeys, kFeatures>;
  static constexpr int kStageBytes = 2 * Keys::kBytes;  // k and v
  static constexpr int kSharedBytes = 2 * Queries::kBytes + 2 * kStageBytes;
  static_assert(kRowPadding % kQueries == 0);
};

// From scores and dp to ds, in place of dp.
template <int kRowBlocks, int kColumnBlocks>
__device__ void score_gradient(const tile::Sums (&scores)[kRowBlocks][kColumnBlocks],
                               tile::Sums (&dp)[kRowBlocks][kColumnBlocks], const float (&log2_sum)[kRowBlocks][2],
                               const float (&delta)[kRowBlocks][2], float factor) {
#pragma unroll
  for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
    for (int n = 0; n < kColumnBlocks; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        dp[m][n][e] =
            tile::power_of_2(fmaf(scores[m][n][e], factor, -log2_sum[m][e / 2])) * (dp[m][n][e] - delta[m][e / 2]);
      }
    }
  }
}

// Block x of the queries, head y, sample z.
template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kResident)
    attention_query_gradient_kernel(const __grid_constant__ BackwardArguments p) {
  using Keys = typename Shape::Keys;
  using Queries = typename Shape::Queries;
  extern __shared__ __align__(1024) unsigned char attention_shared[];
  const int sample = static_cast<int>(blockIdx.z), head = static_cast<int>(blockIdx.y);
  const int block_query = static_cast<int>(blockIdx.x) * Shape::kQueries;
  const int query = block_query + tile::warp() * Shape::kWarpQueries;
  const std::uint32_t q_tile = tile::shared_address(attention_shared), stages = q_tile + 2 * Queries::kBytes;
  const tile::KeyBlocks<Shape::kKeys> keys(p.sight, sample, block_query + Shape::kQueries);
  const auto load_keys = [&](int key, int stage) {
    const std::uint32_t at = stages + stage * Shape::kStageBytes;
    Keys::template load<Shape::kThreads>(at, p.source(p.k, sample, head), key);
    Keys::template load<Shape::kThreads>(at + Keys::kBytes, p.source(p.v, sample, head), key);
    tile::commit_copies();
  };
  Queries::template load<Shape::kThreads>(q_tile, p.source(p.q, sample, head), block_query);
  Queries::template load<Shape::kThreads>(q_tile + Queries::kBytes, p.source(p.d_o, sample, head), block_query);
  load_keys(keys.at(0), 0);
  std::uint32_t q_at = Queries::rows_first(q_tile) + tile::warp() * Shape::kWarpQueries * Queries::kRowBytes;

  float log2_sum[Shape::kRowBlocks][2], delta[Shape::kRowBlocks][2];
#pragma unroll
  for (int m = 0; m < Shape::kRowBlocks; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = query + m * 16 + half * 8 + tile::lane() / 4;
      log2_sum[m][half] = p.log2_sum(sample, head)[row];
      delta[m][half] = p.delta(sample, head)[row];
    }
  }
  tile::Sums dq[Shape::kRowBlocks][Shape::kFeatures / 8];
  tile::clear(dq);
  for (int i = 0; i < keys.count; ++i) {
    if (i + 1 < keys.count) {
      load_keys(keys.at(i + 1), (i + 1) % 2);
    } else {
      tile::commit_copies();
    }
    tile::wait_copies<1>();
    __syncthreads();
    tile::keep_in_loop(q_at);
    const std::uint32_t k_tile = stages + i % 2 * Shape::kStageBytes, v_tile = k_tile + Keys::kBytes;
    tile::Sums scores[Shape::kRowBlocks][Shape::kKeys / 8], dp[Shape::kRowBlocks][Shape::kKeys / 8];
    tile::product_transposed<Queries, Keys>(scores, q_at, Keys::features_first(k_tile));
    tile::product_transposed<Queries, Keys>(dp, q_at + Queries::kBytes, Keys::features_first(v_tile));
    tile::hide(scores, p.sight, sample, query, keys.at(i));
    score_gradient(scores, dp, log2_sum, delta, p.scale * tile::kLog2E);
    tile::add_product<Keys>(dq, dp, Keys::rows_first(k_tile));
    __syncthreads();
  }
  tile::wait_copies<0>();

#pragma unroll
  for (int m = 0; m < Shape::kRowBlocks; ++m) {
    tile::store(dq[m], p.head_of(p.dq, sample, head), p.dq.row_stride, query + m * 16, p.sight.length, p.features,
                p.scale, p.scale);
  }
}

template <class Shape>
void launch_query_gradient(const BackwardArguments& p, unsigned samples, cudaStream_t stream) {
  allow_shared_memory(attention_query_gradient_kernel<Shape>, Shape::kSharedBytes);
  const dim3 grid(ceil_div(p.sight.length, Shape::kQueries), static_cast<unsigned>(p.heads), samples);
  attention_query_gradient_kernel<Shape><<<grid, Shape::kThreads, Shape::kSharedBytes, stream>>>(p);
  check_launch("attention_query_gradient_kernel");
}

// Every shape fits the 99 KiB of shared memory that a block of sm_86 and sm_89 may have.
void launch_backward(const BackwardArguments& p, unsigned samples, cudaStream_t stream) {
  if (p.features <= 32) {
    launch_key_gradient<KeyShape<32, 4, 64, 2>>(p, samples, stream);
    return launch_query_gradient<QueryShape<32, 1, 4, 64, 2>>(p, samples, stream);
  }
  if (p.features <= 64) {
    launch_key_gradient<KeyShape<64, 4, 64, 2>>(p, samples, stream);
    return launch_query_gradient<QueryShape<64, 2, 4, 32, 2>>(p, samples, stream);
  }
  launch_key_gradient<KeyShape<128, 4, 64, 2>>(p, samples, stream);
  launch_query_gradient<QueryShape<128, 1, 4, 64, 2>>(p, samples, stream);
}

void check_shapes(const AttentionBackward& p) {
  check_attention_shapes(p);
  require(p.q.cols / p.heads <= 128, "attention_backward: more than 128 features a head");
  for (const ConstView& v : {p.d_o, p.o, ConstView(p.dq), ConstView(p.dk), ConstView(p.dv)}) {
    require(same_shape(v, p.q), "attention_backward: shapes");
  }
  require(p.log_sum_exp.dtype == DType::F32 && p.log_sum_exp.batch == p.q.batch && p.log_sum_exp.rows == p.heads &&
              p.log_sum_exp.cols == p.q.rows,
          "attention_backward: log_sum_exp does not fit");
}

}  // namespace

void CudaOps::attention_backward(const AttentionBackward& p) {
  check_shapes(p);
  if (run_cudnn(p, 5)) return;
  const std::int64_t padded_length = (p.q.rows + kRowPadding - 1) / kRowPadding * kRowPadding;
  Scratch scratch(*this);
  const auto d_o = take_heads(scratch, p.d_o, p.heads), q = take_heads(scratch, p.q, p.heads),
             k = take_heads(scratch, p.k, p.heads), v = take_heads(scratch, p.v, p.heads),
             o = take_heads(scratch, p.o, p.heads);
  const auto dq = take_heads(scratch, p.dq, p.heads), dk = take_heads(scratch, p.dk, p.heads),
             dv = take_heads(scratch, p.dv, p.heads);
  const View log2_sum = scratch.take(DType::F32, p.q.batch, p.heads, padded_length);
  const View delta = scratch.take(DType::F32, p.q.batch, p.heads, padded_length);
  if (scratch.rehearsing() || p.q.count() == 0) return;
  const ProfileSpan span = timed(KernelFamily::kAttention, attention_operations(p.q, 5));
  for (const auto& x : {d_o, q, k, v, o}) pack(x, p.heads, stream_);
  for_sample_groups(p.q.batch, [&](std::int64_t first, std::int64_t samples) {
    const BackwardArguments arguments{.d_o = from_sample(d_o.rows(), first),
                                      .q = from_sample(q.rows(), first),
                                      .k = from_sample(k.rows(), first),
                                      .v = from_sample(v.rows(), first),
                                      .o = from_sample(o.rows(), first),
                                      .log_sum_exp = from_sample(rows_of<float>(p.log_sum_exp), first),
                                      .log2_sum = from_sample(rows_of<float>(log2_sum), first),
                                      .delta = from_sample(rows_of<float>(delta), first),
                                      .dq = from_sample(dq.rows(), first),
                                      .dk = from_sample(dk.rows(), first),
                                      .dv = from_sample(dv.rows(), first),
                                      .heads = static_cast<int>(p.heads),
                                      .features = static_cast<int>(padded_features(p.q.cols / p.heads)),
                                      .scale = p.scale,
                                      .sight = sight_of(p, first, samples)};
    launch_delta(arguments, static_cast<int>(padded_length), static_cast<unsigned>(samples), stream_);
    launch_backward(arguments, static_cast<unsigned>(samples), stream_);
  });
  for (const auto& x : {dq, dk, dv}) unpack(x, p.heads, stream_);
}

}  // namespace squareq::cuda
