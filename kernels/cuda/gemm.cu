#include <algorithm>
#include <array>

#include "kernels/cuda/check.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_descriptions.h"

namespace squareq::cuda {
namespace {

cudaDataType_t type_of(DType dtype) {
  if (dtype == DType::BF16) return CUDA_R_16BF;
  if (dtype == DType::F32) return CUDA_R_32F;
  throw std::logic_error("GEMM of a type that is neither BF16 nor F32");
}

Layout layout_of(const GemmMatrix& m, std::int64_t rows, std::int64_t cols, std::int64_t batch) {
  Layout layout = make_layout(type_of(m.dtype), rows, cols, m.stride);
  set(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<std::int32_t>(batch));
  set(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, m.batch_stride);
  return layout;
}

// The largest power of two up to 256 that divides the address.
std::uint32_t alignment(const void* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p) | 256U;
  return static_cast<std::uint32_t>(address & (~address + 1));
}

}  // namespace

struct GemmPlans::Plan {
  Operation operation;
  Layout a, b, c;
  cublasLtMatmulAlgo_t algorithm{};
};

GemmPlans::GemmPlans(cudaStream_t stream) : stream_(stream) { check(cublasLtCreate(&handle_), "cublasLtCreate"); }
GemmPlans::~GemmPlans() { cublasLtDestroy(handle_); }

const GemmPlans::Plan& GemmPlans::plan(const Gemm& g) {
  const bool ta = g.transpose_a == Transpose::kYes;
  const bool tb = g.transpose_b == Transpose::kYes;
  const std::array<std::uint32_t, 4> aligned{alignment(g.a.data), alignment(g.b.data), alignment(g.c.data),
                                             alignment(g.bias)};
  const Key key{ta,
                tb,
                g.batch,
                g.m,
                g.n,
                g.k,
                g.a.stride,
                g.b.stride,
                g.c.stride,
                g.a.batch_stride,
                g.b.batch_stride,
                g.c.batch_stride,
                g.a.dtype == DType::F32,
                g.c.dtype == DType::F32,
                g.bias != nullptr,
                g.beta != 0.0F,
                aligned[0],
                aligned[1],
                aligned[2],
                aligned[3]};
  std::unique_ptr<Plan>& found = plans_[key];
  if (found) return *found;

  auto fresh = std::make_unique<Plan>();
  fresh->operation = make_operation(CUBLAS_COMPUTE_32F, CUDA_R_32F);
  set(fresh->operation, CUBLASLT_MATMUL_DESC_TRANSA, tb ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(fresh->operation, CUBLASLT_MATMUL_DESC_TRANSB, ta ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (g.bias != nullptr) {
    set(fresh->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(fresh->operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(g.c.dtype));
    set(fresh->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
  }
  fresh->a = layout_of(g.a, ta ? g.k : g.m, ta ? g.m : g.k, g.batch);
  fresh->b = layout_of(g.b, tb ? g.n : g.k, tb ? g.k : g.n, g.batch);
  fresh->c = layout_of(g.c, g.m, g.n, g.batch);

  const Preference preference = make_preference(static_cast<std::size_t>(kWorkspace));
  // Split sums are added in a fixed order, in float32.
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, aligned[1]);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, aligned[0]);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, aligned[2]);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, aligned[2]);
  cublasLtMatmulHeuristicResult_t result{};
  int count = 0;
  check(cublasLtMatmulAlgoGetHeuristic(handle_, fresh->operation.get(), fresh->b.get(), fresh->a.get(), fresh->c.get(),
                                       fresh->c.get(), preference.get(), 1, &result, &count),
        "cublasLtMatmulAlgoGetHeuristic");
  if (count == 0) check(CUBLAS_STATUS_NOT_SUPPORTED, "no algorithm for a matrix product");
  fresh->algorithm = result.algo;
  found = std::move(fresh);
  return *found;
}

void GemmPlans::run(const Gemm& g, View workspace) {
  if (g.batch == 0 || g.m == 0 || g.n == 0) return;
  const Plan& p = plan(g);
  if (g.bias != nullptr) set(p.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
  const float alpha = 1.0F;
  check(cublasLtMatmul(handle_, p.operation.get(), &alpha, g.b.data, p.b.get(), g.a.data, p.a.get(), &g.beta, g.c.data,
                       p.c.get(), const_cast<std::byte*>(g.c.data), p.c.get(), &p.algorithm, workspace.data,
                       workspace.bytes(), stream_),
        "cublasLtMatmul");
}

}  // namespace squareq::cuda
