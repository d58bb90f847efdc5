// cuBLASLt's descriptions of matrix products, owned.
#pragma once

#include <cublasLt.h>

#include <cstdint>
#include <memory>

#include "kernels/cuda/check.h"

namespace squareq::cuda {

template <class Handle, cublasStatus_t (*destroy)(Handle)>
struct Destroy {
  using pointer = Handle;
  void operator()(Handle handle) const { destroy(handle); }
};
using Operation = std::unique_ptr<cublasLtMatmulDesc_t, Destroy<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>>;
using Layout = std::unique_ptr<cublasLtMatrixLayout_t, Destroy<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>>;
using Preference =
    std::unique_ptr<cublasLtMatmulPreference_t, Destroy<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>>;

template <class Value>
void set(const Operation& to, cublasLtMatmulDescAttributes_t attribute, const Value& value) {
  check(cublasLtMatmulDescSetAttribute(to.get(), attribute, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
}
template <class Value>
void set(const Layout& to, cublasLtMatrixLayoutAttribute_t attribute, const Value& value) {
  check(cublasLtMatrixLayoutSetAttribute(to.get(), attribute, &value, sizeof value),
        "cublasLtMatrixLayoutSetAttribute");
}
template <class Value>
void set(const Preference& to, cublasLtMatmulPreferenceAttributes_t attribute, const Value& value) {
  check(cublasLtMatmulPreferenceSetAttribute(to.get(), attribute, &value, sizeof value),
        "cublasLtMatmulPreferenceSetAttribute");
}

inline Operation make_operation(cublasComputeType_t sums, cudaDataType_t scale) {
  cublasLtMatmulDesc_t operation = nullptr;
  check(cublasLtMatmulDescCreate(&operation, sums, scale), "cublasLtMatmulDescCreate");
  return Operation(operation);
}
inline Preference make_preference(std::size_t workspace) {
  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  Preference owned(preference);
  set(owned, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace);
  return owned;
}
// A row-major matrix: cuBLASLt is column-major, so it is its transpose there.
inline Layout make_layout(cudaDataType_t type, std::int64_t rows, std::int64_t cols, std::int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, type, static_cast<std::uint64_t>(cols), static_cast<std::uint64_t>(rows),
                                   stride),
        "cublasLtMatrixLayoutCreate");
  return Layout(layout);
}

}  // namespace squareq::cuda
