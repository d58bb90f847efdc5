// Fused matrix products for compute capability 9.0: choice of tiles, and launch.
#include "kernels/cuda/fused_gemm_sm90.cuh"

#include <array>

#include "kernels/cuda/fused_gemm_sm90_launch.cuh"

namespace squareq::cuda {
namespace sm90 {
namespace {

// Halves of right operands, see load_right.
template <class T>
CUtensorMap right_map(const ConstView& x, Transpose transposed) {
  return transposed == Transpose::kYes ? map_of(x, T::kCols / kCluster, 128) : map_of(x, kRowElements / kCluster, 128);
}

template <class T, Operands kOperands>
void multiply(const FusedGemm& g, cudaStream_t stream) {
  // y += is a sum with y as the residual.
  const bool accumulate = g.accumulate == Accumulate::kYes;
  const View sum = accumulate ? g.y : g.sum, y = accumulate ? View{} : g.y;
  const ConstView residual = accumulate ? ConstView(g.y) : g.residual;
  constexpr int kStep = kOperands == Operands::kInt8 ? 128 : kRowElements, kChunkBytes = T::kChunk * 2;
  const Arguments arguments{.a = map_of(g.a, T::kRows, 128),
                            .b = right_map<T>(g.b, g.transpose_b),
                            .u = map_of(g.u, T::kRows, 128),
                            .v = right_map<T>(g.v, g.transpose_v),
                            .residual = map_of(residual, kWarpRows, kChunkBytes),
                            .y = map_of(y, kWarpRows, kChunkBytes),
                            .act = map_of(g.act, kWarpRows, kChunkBytes),
                            .sum = map_of(sum, kWarpRows, kChunkBytes),
                            .a_scale = reinterpret_cast<const float*>(g.a_scale.data),
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
                            .v_mn_major = g.transpose_v == Transpose::kNo,
                            .m = static_cast<int>(g.a.rows),
                            .n = static_cast<int>(columns_of(g)),
                            .k = static_cast<int>(g.a.cols),
                            .k_steps = static_cast<int>(ceil_div(g.a.cols, kStep)),
                            .rank = static_cast<int>(g.u.cols),
                            .gelu_begin = static_cast<int>(g.gelu_begin),
                            .schedule = schedule<T>(g.a.rows, columns_of(g))};
  launch<T, fused_gemm_kernel<T, kOperands>>(arguments, stream);
}

template <class T>
void multiply(const FusedGemm& g, cudaStream_t stream) {
  if (g.a.dtype == DType::I8) return multiply<T, Operands::kInt8>(g, stream);
  if (g.transpose_b == Transpose::kYes) return multiply<T, Operands::kBf16>(g, stream);
  multiply<T, Operands::kBf16RightMnMajor>(g, stream);
}

}  // namespace
}  // namespace sm90

void fused_gemm_sm90(const FusedGemm& g, cudaStream_t stream) {
  using namespace sm90;
  require(fused_gemm_sm90_supports(g), "fused_gemm: shapes, types or alignment");
  if (g.a.dtype != g.b.dtype) return fused_gemm_sm90_mixed(g, stream);
  // Small tiles fetch more for each multiplication.
  const std::int64_t m = g.a.rows, n = columns_of(g);
  const double costs[] = {cost<Tile<2, 256>>(m, n), cost<Tile<3, 192>>(m, n), 1.1 * cost<Tile<2, 192>>(m, n),
                          1.4 * cost<Tile<1, 192>>(m, n)};
  switch (std::min_element(std::begin(costs), std::end(costs)) - std::begin(costs)) {
    case 0: return multiply<Tile<2, 256>>(g, stream);
    case 1: return multiply<Tile<3, 192>>(g, stream);
    case 2: return multiply<Tile<2, 192>>(g, stream);
    default: return multiply<Tile<1, 192>>(g, stream);
  }
}

bool fused_gemm_sm90_supports(const FusedGemm& g) {
  // TMA reads and writes rows that begin at multiples of 16 bytes, and writes such multiples.
  constexpr std::int64_t kBytes = 16, kAligned = kBytes / 2;
  const auto fits = [](const ConstView& v, DType dtype) {
    return !v || (v.dtype == dtype && reinterpret_cast<std::uintptr_t>(v.data) % kBytes == 0 &&
                  (v.rows <= 1 || v.row_stride * static_cast<std::int64_t>(size_of(dtype)) % kBytes == 0));
  };
  const bool transposed = g.transpose_b == Transpose::kYes;
  const bool mixed = g.a.dtype == DType::BF16 && g.b.dtype == DType::I8;
  if (mixed && (g.a_scale || (g.v && g.transpose_v == Transpose::kYes) || (!transposed && !g.b_scale))) return false;
  const DType operands = g.a.dtype == DType::I8 && transposed ? DType::I8 : DType::BF16;
  return fits(g.a, operands) && fits(g.b, mixed ? DType::I8 : operands) && fits(g.u, DType::BF16) &&
         fits(g.v, DType::BF16) && fits(g.y, DType::BF16) && fits(g.act, DType::BF16) &&
         fits(g.residual, DType::BF16) && fits(g.sum, DType::BF16) && (!g.act || g.gelu_begin % kAligned == 0) &&
         sm90::columns_of(g) % kAligned == 0;
}

namespace sm90 {
namespace {
// Only machine code for exactly 9.0a has it: a program without, or one translated from PTX, computes nothing here.
__constant__ bool has_code =
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    true;
#else
    false;
#endif
}  // namespace
}  // namespace sm90

TensorCores tensor_cores_of_current_device() {
  bool here = false;
  check(cudaMemcpyFromSymbol(&here, sm90::has_code, sizeof here), "cudaMemcpyFromSymbol");
  return here ? TensorCores::kSm90 : TensorCores::kSm80;
}

}  // namespace squareq::cuda
