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

struct Choice {
  double cost;
  void (*run)(const FusedGemm&, cudaStream_t);
};
// `factor`: time of a multiplication beside that of the largest tile. A weight is expanded once for each tile of
// tokens.
template <class T>
Choice choice(const FusedGemm& g, double factor) {
  return {factor * cost<T>(columns_of(g), g.a.rows), launch_mixed<T>};
}

}  // namespace
}  // namespace sm90

void fused_gemm_sm90_mixed(const FusedGemm& g, cudaStream_t stream) {
  using namespace sm90;
  const Choice choices[] = {choice<MixedTile<2, 256>>(g, 1.0), choice<MixedTile<3, 192>>(g, 1.02),
                            choice<MixedTile<2, 192>>(g, 1.1), choice<MixedTile<2, 128>>(g, 1.35),
                            choice<MixedTile<1, 256>>(g, 1.25)};
  std::min_element(std::begin(choices), std::end(choices), [](const Choice& x, const Choice& y) {
    return x.cost < y.cost;
  })->run(g, stream);
}

}  // namespace squareq::cuda
