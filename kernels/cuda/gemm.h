// Matrix products through cuBLASLt, with one fixed algorithm for each shape.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>

#include "kernels/base/view.h"

namespace squareq::cuda {

enum class Transpose : std::uint8_t { kNo, kYes };

struct GemmMatrix {
  const std::byte* data = nullptr;  // of c: written
  DType dtype = DType::BF16;
  std::int64_t stride = 0;        // between rows, in elements
  std::int64_t batch_stride = 0;  // between samples, in elements; 0: the same for all
};

// Row-major, for each sample: c [m, n] = op(a) [m, k] * op(b) [k, n] + beta * c + bias [n]. a and b are BF16, c
// is BF16 or F32; sums are float32.
struct Gemm {
  Transpose transpose_a = Transpose::kNo;
  Transpose transpose_b = Transpose::kNo;
  std::int64_t batch = 1, m = 0, n = 0, k = 0;
  GemmMatrix a, b;
  float beta = 0.0F;
  GemmMatrix c;
  const void* bias = nullptr;  // of the type of c
};

class GemmPlans {
 public:
  static constexpr std::int64_t kWorkspace = std::int64_t{32} << 20;  // bytes

  explicit GemmPlans(cudaStream_t stream);
  ~GemmPlans();
  GemmPlans(const GemmPlans&) = delete;
  GemmPlans& operator=(const GemmPlans&) = delete;

  // `workspace`: kWorkspace bytes of device memory. The algorithm depends on shapes, types and alignments alone.
  void run(const Gemm& gemm, View workspace);

 private:
  struct Plan;
  using Key = std::array<std::int64_t, 20>;  // all that a plan depends on

  const Plan& plan(const Gemm& gemm);

  cudaStream_t stream_;
  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace squareq::cuda
