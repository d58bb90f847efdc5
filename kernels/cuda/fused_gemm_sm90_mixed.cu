// Products of BF16 activations and INT8 weights on compute capability 9.0: choice of tiles, and launch.
#include "kernels/cuda/fused_gemm_sm90_launch.cuh"
#include "kernels/cuda/fused_gemm_sm90_mixed.cuh"

namespace squareq::cuda {
namespace sm90 {
namespace {

template <class T, Stored kStored>
void launch_mixed(const FusedGemm& g, cudaStream_t stream) {
  // y += is a sum with y as the residual.
  const bool accumulate = g.accumulate == Accumulate::kYes;
  const View sum = accumulate ? g.y : g.sum, y = accumulate ? View{} : g.y;
  const ConstView residual = accumulate ? ConstView(g.y) : g.residual;
  const std::int64_t n = columns_of(g);
  const Arguments arguments{.a = map_of(g.a, T::kCols / kCluster, 128),
                            .b = map_of(g.b, 64, kRowElements),
                            .u = map_of(g.u, T::kCols / kCluster, 128),
                            .v = map_of(g.v, kRankStep, 128),
                            .residual = map_of(residual, T::kChunk, 128),
                            .y = map_of(y, T::kChunk, 128),
                            .act = map_of(g.act, T::kChunk, 128),
                            .sum = map_of(sum, T::kChunk, 128),
                            .a_scale = nullptr,
                            .b_scale = reinterpret_cast<const float*>(g.b_scale.data),
                            .gate = reinterpret_cast<const float*>(g.gate.data),
                            .bias = g.bias.data,
                            .act_data = reinterpret_cast<std::uint16_t*>(g.act.data),
                            .act_stride = g.act.row_stride,
                            .bias_type = g.bias.dtype,
                            .has_y = static_cast<bool>(y),
                            .has_act = static_cast<bool>(g.act),
                            .has_sum = static_cast<bool>(sum),
                            .has_residual = static_cast<bool>(residual),
                            .v_mn_major = true,
                            .m = static_cast<int>(g.a.rows),
                            .n = static_cast<int>(n),
                            .k = static_cast<int>(g.a.cols),
                            .k_steps = static_cast<int>(ceil_div(g.a.cols, kRowElements)),
                            .rank = static_cast<int>(g.u.cols),
                            .gelu_begin = static_cast<int>(g.gelu_begin),
                            .schedule = schedule<T>(n, g.a.rows)};
  launch<T, mixed_gemm_kernel<T, kStored>>(arguments, stream);
}

template <class T>
void launch_mixed(const FusedGemm& g, cudaStream_t stream) {
  if (g.transpose_b == Transpose::kYes) return launch_mixed<T, Stored::kByFeature>(g, stream);
  launch_mixed<T, Stored::kByK>(g, stream);
}

}  // namespace
}  // namespace sm90

void fused_gemm_sm90_mixed(const FusedGemm& g, cudaStream_t stream) {
  using namespace sm90;
  const std::int64_t n = columns_of(g), tokens = g.a.rows;
  const double costs[] = {cost<MixedTile<2, 256>>(n, tokens), cost<MixedTile<3, 192>>(n, tokens),
                          1.1 * cost<MixedTile<2, 192>>(n, tokens), 1.35 * cost<MixedTile<2, 128>>(n, tokens)};
  switch (std::min_element(std::begin(costs), std::end(costs)) - std::begin(costs)) {
    case 0: return launch_mixed<MixedTile<2, 256>>(g, stream);
    case 1: return launch_mixed<MixedTile<3, 192>>(g, stream);
    case 2: return launch_mixed<MixedTile<2, 192>>(g, stream);
    default: return launch_mixed<MixedTile<2, 128>>(g, stream);
  }
}

}  // namespace squareq::cuda
