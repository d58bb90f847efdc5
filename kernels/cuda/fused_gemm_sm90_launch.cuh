// What the hosts' sides of the kernels for compute capability 9.0 share: descriptions of matrices, schedules, launches.
#pragma once

#include "kernels/cuda/check.h"
#include "kernels/cuda/fused_gemm.h"
#include "kernels/cuda/fused_gemm_sm90_tile.cuh"
#include "kernels/cuda/tensor.cuh"

namespace squareq::cuda::sm90 {

// Of the driver, found at run time: programs also start where there is no driver.
using EncodeTiled = decltype(&cuTensorMapEncodeTiled);
inline EncodeTiled encode_tiled() {
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
inline CUtensorMap map_of(const ConstView& x, int box_rows, int box_bytes) {
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

inline int multiprocessors() {
  static const int count = [] {
    int device = 0, n = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    return n;
  }();
  return count;
}

// Tiles over [m, n] sums, m along the tiles' rows.
template <class T>
Schedule schedule(std::int64_t m, std::int64_t n) {
  constexpr int kBandRows = 2560;
  const int pairs = static_cast<int>(ceil_div(m, kCluster * T::kRows));
  const int bands = static_cast<int>(ceil_div(pairs * kCluster * T::kRows, kBandRows));
  return {.pairs = pairs,
          .columns = static_cast<int>(ceil_div(n, T::kCols)),
          .band = static_cast<int>(ceil_div(pairs, bands))};
}

// Time of all tiles, in arbitrary units, if every cluster takes its share of them.
template <class T>
double cost(std::int64_t m, std::int64_t n) {
  const int clusters = multiprocessors() / kCluster;
  const int rounds = (schedule<T>(m, n).count() + clusters - 1) / clusters;
  return rounds * static_cast<double>(T::kRows * T::kCols);
}

// Persistent clusters, which may begin while the kernel before still runs.
template <class T, auto kKernel>
void launch(const Arguments& arguments, cudaStream_t stream) {
  static const cudaError_t prepared =
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
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
  check(cudaLaunchKernelEx(&config, kKernel, arguments), "fused_gemm");
}

// Output columns.
inline std::int64_t columns_of(const FusedGemm& g) { return g.transpose_b == Transpose::kYes ? g.b.rows : g.b.cols; }

}  // namespace squareq::cuda::sm90
