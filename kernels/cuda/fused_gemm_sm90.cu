// Fused matrix products for compute capability 9.0: choice of tiles, and launch.
#include "kernels/cuda/fused_gemm_sm90.cuh"

#include <array>

#include "kernels/cuda/check.h"
#include "kernels/cuda/fused_gemm.h"
#include "kernels/cuda/tensor.cuh"

namespace squareq::cuda {
namespace sm90 {
namespace {

// Of the driver, found at run time: programs also start where there is no driver.
using EncodeTiled = decltype(&cuTensorMapEncodeTiled);
EncodeTiled encode_tiled() {
  static const EncodeTiled found = [] {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult status{};
#if CUDART_VERSION >= 12050
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address, 12000, cudaEnableDefault, &status),
          "cudaGetDriverEntryPoint");
#else
    check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &address, cudaEnableDefault, &status),
          "cudaGetDriverEntryPoint");
#endif
    require(status == cudaDriverEntryPointSuccess, "the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<EncodeTiled>(address);
  }();
  return found;
}

// Boxes of [rows, bytes of a row] of a matrix; in shared memory the 16-byte pieces of a row of 128 or 64 bytes are
// swizzled.
CUtensorMap map_of(const ConstView& x, int box_rows, int box_bytes) {
  CUtensorMap map{};
  if (!x) return map;
  const auto element = static_cast<std::int64_t>(size_of(x.dtype));
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(x.cols), static_cast<cuuint64_t>(x.rows)};
  // The stride of a single row is not used, but must be valid.
  const std::int64_t stride = x.rows > 1 ? x.row_stride * element : (x.cols * element + 15) / 16 * 16;
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_bytes / element), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult status =
      encode_tiled()(&map, x.dtype == DType::I8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
                     const_cast<std::byte*>(x.data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                     box_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
                     CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled refuses a matrix");
  return map;
}

// Halves of right operands, see load_right.
template <class T>
CUtensorMap right_map(const ConstView& x, Transpose transposed) {
  return transposed == Transpose::kYes ? map_of(x, T::kCols / kCluster, 128) : map_of(x, kRowElements / kCluster, 128);
}

int multiprocessors() {
  static const int count = [] {
    int device = 0, n = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    return n;
  }();
  return count;
}

template <class T>
Schedule schedule(const FusedGemm& g) {
  constexpr int kBandRows = 2560;
  const int pairs = static_cast<int>(ceil_div(g.a.rows, kCluster * T::kRows));
  const int n = static_cast<int>(g.transpose_b == Transpose::kYes ? g.b.rows : g.b.cols);
  const int bands = static_cast<int>(ceil_div(pairs * kCluster * T::kRows, kBandRows));
  return {.pairs = pairs,
          .columns = static_cast<int>(ceil_div(n, T::kCols)),
          .band = static_cast<int>(ceil_div(pairs, bands))};
}

template <class T, Operands kOperands>
void launch(const FusedGemm& g, cudaStream_t stream) {
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
                            .n = static_cast<int>(g.transpose_b == Transpose::kYes ? g.b.rows : g.b.cols),
                            .k_steps = static_cast<int>(ceil_div(g.a.cols, kStep)),
                            .rank = static_cast<int>(g.u.cols),
                            .gelu_begin = static_cast<int>(g.gelu_begin),
                            .schedule = schedule<T>(g)};
  const auto kernel = fused_gemm_kernel<T, kOperands>;
  static const cudaError_t prepared =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
  check(prepared, "cudaFuncSetAttribute");
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {kCluster, 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = kCluster * std::min(multiprocessors() / kCluster, arguments.schedule.count());
  config.blockDim = T::kThreads;
  config.dynamicSmemBytes = T::kSharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  check(cudaLaunchKernelEx(&config, kernel, arguments), "fused_gemm");
}

template <class T>
void launch(const FusedGemm& g, cudaStream_t stream) {
  if (g.a.dtype == DType::I8) return launch<T, Operands::kInt8>(g, stream);
  if (g.transpose_b == Transpose::kYes) return launch<T, Operands::kBf16>(g, stream);
  launch<T, Operands::kBf16RightMnMajor>(g, stream);
}

// Time of all tiles, in arbitrary units, if every cluster takes its share of them.
template <class T>
double cost(const FusedGemm& g) {
  const int clusters = multiprocessors() / kCluster;
  const int rounds = (schedule<T>(g).count() + clusters - 1) / clusters;
  return rounds * static_cast<double>(T::kRows * T::kCols);
}

}  // namespace
}  // namespace sm90

void fused_gemm_sm90(const FusedGemm& g, cudaStream_t stream) {
  using namespace sm90;
  require(fused_gemm_sm90_supports(g), "fused_gemm: shapes, types or alignment");
  // Small tiles fetch more for each multiplication.
  const double costs[] = {cost<Tile<2, 256>>(g), cost<Tile<3, 192>>(g), 1.1 * cost<Tile<2, 192>>(g),
                          1.4 * cost<Tile<1, 192>>(g)};
  switch (std::min_element(std::begin(costs), std::end(costs)) - std::begin(costs)) {
    case 0: return launch<Tile<2, 256>>(g, stream);
    case 1: return launch<Tile<3, 192>>(g, stream);
    case 2: return launch<Tile<2, 192>>(g, stream);
    default: return launch<Tile<1, 192>>(g, stream);
  }
}

bool fused_gemm_sm90_supports(const FusedGemm& g) {
  // TMA reads and writes rows that begin at multiples of 16 bytes, and writes such multiples.
  constexpr std::int64_t kBytes = 16, kAligned = kBytes / 2;
  const auto fits = [](const ConstView& v, DType dtype) {
    return !v || (v.dtype == dtype && reinterpret_cast<std::uintptr_t>(v.data) % kBytes == 0 &&
                  (v.rows <= 1 || v.row_stride * static_cast<std::int64_t>(size_of(dtype)) % kBytes == 0));
  };
  const bool int8 = g.a.dtype == DType::I8 && g.transpose_b == Transpose::kYes;
  const DType operands = int8 ? DType::I8 : DType::BF16;
  return fits(g.a, operands) && fits(g.b, operands) && fits(g.u, DType::BF16) && fits(g.v, DType::BF16) &&
         fits(g.y, DType::BF16) && fits(g.act, DType::BF16) && fits(g.residual, DType::BF16) &&
         fits(g.sum, DType::BF16) && (!g.act || g.gelu_begin % kAligned == 0) &&
         (g.transpose_b == Transpose::kYes ? g.b.rows : g.b.cols) % kAligned == 0;
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
