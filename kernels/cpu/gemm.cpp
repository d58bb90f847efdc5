#include "kernels/cpu/gemm.h"

#include <cblas.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <thread>

namespace squareq {
namespace {

blasint narrow(std::int64_t value) {
  if (value < 0 || value > std::numeric_limits<blasint>::max()) throw std::logic_error("gemm: size out of range");
  return static_cast<blasint>(value);
}

CBLAS_TRANSPOSE flag(Transpose t) { return t == Transpose::kYes ? CblasTrans : CblasNoTrans; }

}  // namespace

void gemm(const Gemm& g) {
  if (g.m == 0 || g.n == 0) return;
  // The library demands strides of at least 1 even of empty matrices.
  const auto stride = [](std::int64_t s) { return narrow(std::max<std::int64_t>(s, 1)); };
  cblas_sgemm(CblasRowMajor, flag(g.transpose_a), flag(g.transpose_b), narrow(g.m), narrow(g.n), narrow(g.k), g.alpha,
              g.a, stride(g.lda), g.b, stride(g.ldb), g.beta, g.c, stride(g.ldc));
}

void use_calling_thread_only() { openblas_set_num_threads(1); }

void use_library_threads(int threads) {
  openblas_set_num_threads(threads > 0 ? threads : static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace squareq
