#include "kernels/low_rank.h"

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "kernels/base/error.h"

// LAPACK, which OpenBLAS contains; its Fortran names, because Debian's OpenBLAS comes without the C interface.
// Matrices are column-major.
extern "C" {
void dgeqrf_(const int* m, const int* n, double* a, const int* lda, double* tau, double* work, const int* lwork,
             int* info);
void dorgqr_(const int* m, const int* n, const int* k, double* a, const int* lda, const double* tau, double* work,
             const int* lwork, int* info);
void dgesvd_(const char* jobu, const char* jobvt, const int* m, const int* n, double* a, const int* lda, double* s,
             double* u, const int* ldu, double* vt, const int* ldvt, double* work, const int* lwork, int* info,
             std::size_t jobu_length, std::size_t jobvt_length);
}

namespace squareq {
namespace {

struct Matrix {  // column-major
  Matrix(std::int64_t row_count, std::int64_t col_count)
      : rows(static_cast<int>(row_count)),
        cols(static_cast<int>(col_count)),
        values(static_cast<std::size_t>(row_count * col_count)) {}
  double& at(int row, int col) {
    return values[static_cast<std::size_t>(col) * static_cast<std::size_t>(rows) + static_cast<std::size_t>(row)];
  }

  int rows;
  int cols;
  std::vector<double> values;
};

void check(int info, const char* routine) {
  if (info == 0) return;
  throw NumericError({"singular values of an adapter", std::string(routine) + " returned " + std::to_string(info),
                      "a decomposition", "check the LoRA file for extreme values"});
}

// Calls a LAPACK routine twice, first for the size of its work space.
template <class Call>
void with_work_space(const char* routine, Call call) {
  int info = 0;
  int size = -1;
  std::vector<double> work(1);
  call(work.data(), &size, &info);
  check(info, routine);
  size = static_cast<int>(work[0]);
  work.resize(static_cast<std::size_t>(size));
  call(work.data(), &size, &info);
  check(info, routine);
}

struct Qr {
  Matrix q;  // [m, k], orthonormal columns, k = min(m, n)
  Matrix r;  // [k, n], upper triangular
};

Qr decompose(Matrix a) {
  const int k = std::min(a.rows, a.cols);
  std::vector<double> tau(static_cast<std::size_t>(k));
  with_work_space("dgeqrf", [&](double* work, const int* size, int* info) {
    dgeqrf_(&a.rows, &a.cols, a.values.data(), &a.rows, tau.data(), work, size, info);
  });
  Matrix r(k, a.cols);
  for (int col = 0; col < a.cols; ++col) {
    for (int row = 0; row <= std::min(col, k - 1); ++row) r.at(row, col) = a.at(row, col);
  }
  a.cols = k;
  a.values.resize(static_cast<std::size_t>(a.rows) * static_cast<std::size_t>(k));
  with_work_space("dorgqr", [&](double* work, const int* size, int* info) {
    dorgqr_(&a.rows, &k, &k, a.values.data(), &a.rows, tau.data(), work, size, info);
  });
  return {std::move(a), std::move(r)};
}

struct Svd {
  Matrix u;   // [m, p], p = min(m, n)
  Matrix vt;  // [p, n]
  std::vector<double> values;
};

Svd singular_decomposition(Matrix a) {
  const int p = std::min(a.rows, a.cols);
  Svd svd{Matrix(a.rows, p), Matrix(p, a.cols), std::vector<double>(static_cast<std::size_t>(p))};
  with_work_space("dgesvd", [&](double* work, const int* size, int* info) {
    dgesvd_("S", "S", &a.rows, &a.cols, a.values.data(), &a.rows, svd.values.data(), svd.u.values.data(), &a.rows,
            svd.vt.values.data(), &p, work, size, info, 1, 1);
  });
  return svd;
}

Matrix multiply(const Matrix& a, bool a_transposed, const Matrix& b, bool b_transposed) {
  const int m = a_transposed ? a.cols : a.rows;
  const int k = a_transposed ? a.rows : a.cols;
  const int n = b_transposed ? b.rows : b.cols;
  Matrix c(m, n);
  cblas_dgemm(CblasColMajor, a_transposed ? CblasTrans : CblasNoTrans, b_transposed ? CblasTrans : CblasNoTrans, m, n,
              k, 1.0, a.values.data(), a.rows, b.values.data(), b.rows, 0.0, c.values.data(), m);
  return c;
}

// up = up_q core_u diag(values), down = core_vt down_q^T.
struct Factors {
  Matrix up_q;
  Matrix down_q;
  Svd core;
};

Factors factors(const LowRankProduct& product) {
  Matrix up(product.rows, product.rank);
  for (int row = 0; row < up.rows; ++row) {
    for (int col = 0; col < up.cols; ++col) {
      up.at(row, col) = static_cast<double>(product.up[static_cast<std::size_t>(row * product.rank + col)]);
    }
  }
  Matrix down(product.cols, product.rank);  // row-major [rank, cols] as it lies
  std::transform(product.down.begin(), product.down.end(), down.values.begin(),
                 [](float value) { return static_cast<double>(value); });
  Qr left = decompose(std::move(up));
  Qr right = decompose(std::move(down));
  Svd core = singular_decomposition(multiply(left.r, false, right.r, true));
  return {std::move(left.q), std::move(right.q), std::move(core)};
}

double norm(std::span<const double> values) {
  return std::sqrt(std::inner_product(values.begin(), values.end(), values.begin(), 0.0));
}

}  // namespace

std::vector<double> singular_values(const LowRankProduct& product) { return factors(product).core.values; }

Truncation truncate(const LowRankProduct& product, std::int64_t rank) {
  Factors f = factors(product);
  const auto terms = static_cast<int>(std::min<std::int64_t>(rank, static_cast<std::int64_t>(f.core.values.size())));
  Matrix u(f.core.u.rows, terms);
  Matrix v(f.core.vt.cols, terms);
  for (int term = 0; term < terms; ++term) {
    const double root = std::sqrt(f.core.values[static_cast<std::size_t>(term)]);
    for (int i = 0; i < u.rows; ++i) u.at(i, term) = f.core.u.at(i, term) * root;
    for (int i = 0; i < v.rows; ++i) v.at(i, term) = f.core.vt.at(term, i) * root;
  }
  Matrix up = multiply(f.up_q, false, u, false);
  Matrix down = multiply(f.down_q, false, v, false);
  Truncation result{{.rows = product.rows, .cols = product.cols, .rank = rank}, 1.0};
  result.product.up.resize(static_cast<std::size_t>(product.rows * rank));
  result.product.down.resize(static_cast<std::size_t>(rank * product.cols));
  for (int term = 0; term < terms; ++term) {
    for (int i = 0; i < up.rows; ++i) {
      result.product.up[static_cast<std::size_t>(i * rank + term)] = static_cast<float>(up.at(i, term));
    }
    for (int i = 0; i < down.rows; ++i) {
      result.product.down[static_cast<std::size_t>(term * product.cols + i)] = static_cast<float>(down.at(i, term));
    }
  }
  const std::span<const double> values = f.core.values;
  const double all = norm(values);
  if (all > 0.0) result.kept = norm(values.first(static_cast<std::size_t>(terms))) / all;
  return result;
}

}  // namespace squareq
