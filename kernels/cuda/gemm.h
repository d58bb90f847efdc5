// Matrix products through cuBLASLt.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

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
  ConstView bias;  // of the type of c, or none; in a rehearsal without memory
};

// An algorithm is chosen for each shape: the first that cuBLASLt proposes, or the fastest of those proposed where the
// shape was foreseen and timed.
class GemmPlans {
 public:
  static constexpr std::int64_t kWorkspace = std::int64_t{32} << 20;  // bytes

  explicit GemmPlans(cudaStream_t stream);
  ~GemmPlans();
  GemmPlans(const GemmPlans&) = delete;
  GemmPlans& operator=(const GemmPlans&) = delete;

  // `workspace`: kWorkspace bytes of device memory. The algorithm depends on shapes, types and alignments, and on what
  // was tuned or restored.
  void run(const Gemm& gemm, View workspace);

  // A product that tune() is to time. Only shapes and alignments count.
  void foresee(const Gemm& gemm);
  // Times what was foreseen and is not known yet, with random numbers in `memory`. What does not fit there stays with
  // the first algorithm.
  void tune(View memory);

  // The GPU, its driver and cuBLASLt.
  std::string identity() const;
  // The algorithms that were timed, with the device, driver and library that they hold for, as one line of text.
  std::string choices() const;
  // Throws FormatError if they are of another device, driver or library.
  void restore(std::string_view choices);

 private:
  struct Plan;
  using Key = std::array<std::int64_t, 20>;  // all that a plan depends on
  using Algorithm = std::array<std::uint64_t, 8>;

  static Key key_of(const Gemm& gemm);
  static std::unique_ptr<Plan> make_plan(const Gemm& gemm);
  void multiply(const Plan& plan, const Gemm& gemm, View workspace) const;
  std::vector<Algorithm> proposals(const Plan& plan, const Gemm& gemm, int most) const;
  double seconds(const Plan& plan, const Gemm& gemm, View workspace) const;
  void choose(const Key& key, const Gemm& foreseen, View memory);

  cudaStream_t stream_;
  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, std::unique_ptr<Plan>> plans_;
  std::map<Key, Gemm> foreseen_;
  std::map<Key, Algorithm> choices_;
};

}  // namespace squareq::cuda
