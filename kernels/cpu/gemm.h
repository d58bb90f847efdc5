// Matrix products of row-major float32 matrices, through OpenBLAS on the calling thread.
#pragma once

#include <cstdint>

namespace squareq {

enum class Transpose : std::uint8_t { kNo, kYes };

// c [m, n] = alpha * op(a) op(b) + beta * c, op(a) [m, k], op(b) [k, n]. lda, ldb, ldc are row strides in elements.
// With beta = 0, c is not read. Throws std::logic_error if a size does not fit the library's integers.
struct Gemm {
  Transpose transpose_a = Transpose::kNo;
  Transpose transpose_b = Transpose::kNo;
  std::int64_t m = 0, n = 0, k = 0;
  float alpha = 1.0F;
  const float* a = nullptr;
  std::int64_t lda = 0;
  const float* b = nullptr;
  std::int64_t ldb = 0;
  float beta = 0.0F;
  float* c = nullptr;
  std::int64_t ldc = 0;
};
void gemm(const Gemm& g);

// Makes OpenBLAS compute on the calling thread only: we share out the work ourselves.
void use_calling_thread_only();

// Lets OpenBLAS share out its work itself, for measuring what it reaches alone; 0: one thread per hardware thread.
void use_library_threads(int threads);

}  // namespace squareq
