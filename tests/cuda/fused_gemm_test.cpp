#include "kernels/cuda/fused_gemm.h"

#include <algorithm>
#include <cmath>

#include "tests/cuda/harness.h"

namespace squareq::test {
namespace {

using cuda::FusedGemm;
using cuda::TensorCores;
using cuda::Transpose;

// All inputs are the same in both places and sums are exact or in float32, so an output differs by its one rounding.
constexpr double kOneRounding = 0.58 * kBf16;

struct Case {
  DType a_type = DType::I8, b_type = DType::I8;
  Transpose b = Transpose::kYes, v = Transpose::kYes;
  std::int64_t m = 150, n = 200, k = 208, rank = 0;
  bool scales = true, bias = false, y = true, act = false, sum = false, in_place = false, gate = true;
  DType bias_type = DType::F32;
  std::int64_t gelu_begin = 0;
  Accumulate accumulate = Accumulate::kNo;
};

// Types and layouts of the operands. With a of BF16 and b of I8 adapters are stored as [r, n] only.
constexpr Case kOperands[] = {
    {},
    {.a_type = DType::BF16, .b_type = DType::BF16, .scales = false},
    {.a_type = DType::BF16, .b_type = DType::BF16, .b = Transpose::kNo, .v = Transpose::kNo, .scales = false},
    {.a_type = DType::BF16, .v = Transpose::kNo},
    {.a_type = DType::BF16, .b = Transpose::kNo, .v = Transpose::kNo}};

// Twins of matrices are slices of larger ones, from row 8 and column 8 on.
constexpr std::int64_t pad_of(std::int64_t cols) { return cols % 8 == 0 ? 16 : 17; }

// [rows, cols] with rows that begin at multiples of 16 bytes.
class Int8Matrix {
 public:
  Int8Matrix(std::int64_t rows, std::int64_t cols, std::uint32_t stream) : stride_((cols + 15) / 16 * 16) {
    std::vector<float> normal(static_cast<std::size_t>(rows * stride_));
    fill_random(normal, stream, 60.0F);
    for (const float x : normal) values_.push_back(static_cast<std::int8_t>(std::clamp(x, -128.0F, 127.0F)));
    memory_ = gpu()->allocate(values_.size());
    View all(memory_.get(), DType::I8, 1, rows, stride_);
    gpu()->upload(values_.data(), all);
    view = all.col_slice(0, cols);
  }
  double at(std::int64_t row, std::int64_t col) const { return values_[static_cast<std::size_t>(row * stride_ + col)]; }

  View view;

 private:
  std::int64_t stride_;
  std::vector<std::int8_t> values_;
  Buffer memory_;
};

bool scales_along_k(const Case& c) { return c.b_type == DType::I8 && c.b == Transpose::kNo; }

struct Operands {
  explicit Operands(const Case& c)
      : a8(c.a_type == DType::I8 ? c.m : 1, c.k, 1),
        b8(c.b == Transpose::kYes ? c.n : c.k, c.b == Transpose::kYes ? c.k : c.n, 2),
        a16(1, c.m, c.k, 3, DType::BF16, pad_of(c.k)),
        b16(matrix(c.b, c.n, c.k, 4)),
        a_scale(1, 1, c.m, 5, DType::F32, 0, 0.02F),
        b_scale(1, 1, scales_along_k(c) ? c.k : c.n, 6, DType::F32, 0, 0.02F),
        u(1, c.m, std::max<std::int64_t>(c.rank, 8), 7, DType::BF16, 16),
        v(matrix(c.v, c.n, std::max<std::int64_t>(c.rank, 8), 8)),
        bias(1, 1, c.n, 9, c.bias_type),
        gate(1, 1, c.n, 10, DType::F32),
        residual(1, c.m, c.n, 11, DType::BF16, pad_of(c.n)),
        y(1, c.m, c.n, 12, DType::BF16, pad_of(c.n)),
        act(1, c.m, c.n - c.gelu_begin, 13, DType::BF16, pad_of(c.n - c.gelu_begin)),
        sum(1, c.m, c.n, 14, DType::BF16, pad_of(c.n)) {}

  static Twin matrix(Transpose transposed, std::int64_t n, std::int64_t k, std::uint32_t stream) {
    if (transposed == Transpose::kYes) return Twin(1, n, k, stream, DType::BF16, pad_of(k));
    return Twin(1, k, n, stream, DType::BF16, pad_of(n));
  }

  Int8Matrix a8, b8;
  Twin a16, b16, a_scale, b_scale, u, v, bias, gate, residual, y, act, sum;
};

FusedGemm product(const Case& c, const Operands& o) {
  return {.a = c.a_type == DType::I8 ? o.a8.view : o.a16.cuda,
          .b = c.b_type == DType::I8 ? o.b8.view : o.b16.cuda,
          .transpose_b = c.b,
          .a_scale = c.scales && c.a_type == c.b_type ? o.a_scale.cuda : View{},
          .b_scale = c.scales || scales_along_k(c) ? o.b_scale.cuda : View{},
          .u = c.rank > 0 ? o.u.cuda : View{},
          .v = c.rank > 0 ? o.v.cuda : View{},
          .transpose_v = c.v,
          .bias = c.bias ? o.bias.cuda : View{},
          .y = c.y ? o.y.cuda : View{},
          .accumulate = c.accumulate,
          .act = c.act ? o.act.cuda : View{},
          .gelu_begin = c.gelu_begin,
          .gate = c.sum && c.gate ? o.gate.cuda : View{},
          .residual = c.sum ? (c.in_place ? o.sum.cuda : o.residual.cuda) : View{},
          .sum = c.sum ? o.sum.cuda : View{}};
}

double element(const Twin& x, Transpose transposed, std::int64_t row, std::int64_t col) {
  return transposed == Transpose::kYes ? x.cpu.f32(0, row)[col] : x.cpu.f32(0, col)[row];
}

// Element [k, n] = [t, j] of op(b) as it is multiplied.
double right(const Case& c, const Operands& o, std::int64_t t, std::int64_t j) {
  if (c.b_type == DType::BF16) return element(o.b16, c.b, j, t);
  if (c.b == Transpose::kYes) return o.b8.at(j, t);
  float scaled = o.b_scale.cpu.f32()[t] * static_cast<float>(o.b8.at(t, j));
  std::byte rounded[2];
  from_f32(&scaled, DType::BF16, rounded, 1);
  to_f32(rounded, DType::BF16, &scaled, 1);
  return static_cast<double>(scaled);
}

// What is rounded to y, row by row.
class Sums {
 public:
  Sums(const Case& c, const Operands& o) : c_(c), o_(o), row_(static_cast<std::size_t>(c.n)) {
    for (std::int64_t t = 0; t < c.k; ++t)
      for (std::int64_t j = 0; j < c.n; ++j) b_.push_back(right(c, o, t, j));
    for (std::int64_t t = 0; t < c.rank; ++t)
      for (std::int64_t j = 0; j < c.n; ++j) v_.push_back(element(o.v, c.v, j, t));
  }

  const std::vector<double>& row(std::int64_t i) {
    std::fill(row_.begin(), row_.end(), 0.0);
    for (std::int64_t t = 0; t < c_.k; ++t)
      add(c_.a_type == DType::I8 ? o_.a8.at(i, t) : static_cast<double>(o_.a16.cpu.f32(0, i)[t]), b_, t);
    for (std::int64_t j = 0; j < c_.n && c_.scales; ++j) {
      double& s = row_[static_cast<std::size_t>(j)];
      if (c_.a_type == c_.b_type) s *= static_cast<double>(o_.a_scale.cpu.f32()[i]);
      if (!scales_along_k(c_)) s *= static_cast<double>(o_.b_scale.cpu.f32()[j]);
    }
    for (std::int64_t t = 0; t < c_.rank; ++t) add(static_cast<double>(o_.u.cpu.f32(0, i)[t]), v_, t);
    for (std::int64_t j = 0; j < c_.n && c_.bias; ++j)
      row_[static_cast<std::size_t>(j)] += static_cast<double>(o_.bias.cpu.f32()[j]);
    return row_;
  }

 private:
  void add(double factor, const std::vector<double>& matrix, std::int64_t row) {
    const double* from = matrix.data() + row * c_.n;
    for (double& s : row_) s += factor * *from++;
  }

  const Case& c_;
  const Operands& o_;
  std::vector<double> b_, v_, row_;
};

void compute_on_host(const Case& c, const Operands& o) {
  Sums sums(c, o);
  for (std::int64_t i = 0; i < c.m; ++i) {
    const std::vector<double>& row = sums.row(i);
    for (std::int64_t j = 0; j < c.n; ++j) {
      const double s = row[static_cast<std::size_t>(j)];
      if (c.y) {
        float& y = o.y.cpu.f32(0, i)[j];
        y = static_cast<float>(c.accumulate == Accumulate::kYes ? static_cast<double>(y) + s : s);
      }
      if (c.act && j >= c.gelu_begin) {
        const double inner = std::sqrt(2.0 / M_PI) * (s + 0.044715 * s * s * s);
        o.act.cpu.f32(0, i)[j - c.gelu_begin] = static_cast<float>(0.5 * s * (1.0 + std::tanh(inner)));
      }
      if (c.sum) {
        const double gate = c.gate ? static_cast<double>(o.gate.cpu.f32()[j]) : 1.0;
        const float residual = (c.in_place ? o.sum : o.residual).cpu.f32(0, i)[j];
        o.sum.cpu.f32(0, i)[j] = static_cast<float>(static_cast<double>(residual) + gate * s);
      }
    }
  }
}

void run(const Case& c) {
  for (const TensorCores cores : {TensorCores::kSm80, TensorCores::kSm90}) {
    if (cores == TensorCores::kSm90 && cuda::tensor_cores_of_current_device() != cores) continue;
    Operands o(c);
    const FusedGemm gemm = product(c, o);
    CAPTURE(static_cast<int>(cores), c.m, c.n, c.k, c.rank);
    if (!cuda::fused_gemm_supports(gemm, cores)) {
      CHECK(cores == TensorCores::kSm80);  // the other one takes all cases
      continue;
    }
    cuda::fused_gemm(gemm, cores, nullptr);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    compute_on_host(c, o);
    if (c.y) CHECK(o.y.error() <= kOneRounding);
    if (c.act) CHECK(o.act.error() <= kOneRounding);
    if (c.sum) CHECK(o.sum.error() <= kOneRounding);
  }
}

}  // namespace

TEST_CASE("fused product: equals the plain loop") {
  if (gpu() == nullptr) return;
  for (const Case& base : kOperands) {
    const auto with = [&](auto change) {
      Case c = base;
      change(c);
      if (c.a_type != c.b_type) c.v = Transpose::kNo;
      run(c);
    };
    run(base);
    with([](Case& c) { c.m = 1, c.n = 8, c.k = 16; });
    with([](Case& c) { c.m = 33, c.n = 16, c.k = 48; });
    with([](Case& c) { c.m = 77, c.n = 200, c.k = 272, c.bias = true; });
    with([](Case& c) { c.m = 400, c.n = 776, c.k = 400, c.rank = 16; });        // several tiles
    with([](Case& c) { c.rank = 200, c.v = Transpose::kYes, c.bias = true; });  // several steps of rank
    with([](Case& c) { c.rank = 72, c.v = Transpose::kNo, c.bias_type = DType::BF16, c.bias = true; });
    with([](Case& c) { c.scales = !c.scales, c.bias_type = DType::F16, c.bias = true; });
    with([](Case& c) { c.act = true, c.gelu_begin = 64, c.rank = 16; });
    with([](Case& c) { c.act = true, c.y = false, c.n = 264; });
    with([](Case& c) { c.act = true, c.gelu_begin = 72; });
    with([](Case& c) { c.sum = true, c.y = false, c.n = 520, c.rank = 16; });
    with([](Case& c) { c.sum = true, c.n = 520, c.bias = true; });
    with([](Case& c) { c.sum = true, c.in_place = true, c.y = false, c.n = 520; });
    with([](Case& c) { c.sum = true, c.gate = false, c.m = 201; });
    with([](Case& c) { c.accumulate = Accumulate::kYes, c.n = 520, c.m = 300, c.rank = 16; });
  }
}

TEST_CASE("fused product: shapes that fill a GPU of 132 multiprocessors with one tile each") {
  if (gpu() == nullptr) return;
  for (const auto& [m, n] : {std::pair{1024, 4096}, std::pair{1536, 3072}, std::pair{1024, 3072}, std::pair{960, 3072},
                             std::pair{640, 3072}}) {
    for (Case c : kOperands) {
      c.m = m, c.n = n, c.k = 48, c.rank = 16, c.bias = true;
      run(c);
    }
  }
}

TEST_CASE("fused product: rows of any length of K") {
  if (gpu() == nullptr) return;
  for (const std::int64_t k : {7, 31, 64, 127, 1000}) {
    for (Case c : kOperands) {
      c.k = k;
      run(c);
    }
  }
}

TEST_CASE("fused product: refuses operands that it would misread") {
  if (gpu() == nullptr || cuda::tensor_cores_of_current_device() != TensorCores::kSm90) return;
  const Case c;
  const Operands o(c);
  const FusedGemm good = product(c, o);
  CHECK(cuda::fused_gemm_supports(good, TensorCores::kSm90));
  const auto refused = [](const FusedGemm& g) {
    CHECK_FALSE(cuda::fused_gemm_supports(g, TensorCores::kSm90));
    CHECK_THROWS_AS(cuda::fused_gemm(g, TensorCores::kSm90, nullptr), std::logic_error);
  };
  FusedGemm g = good;
  g.a = o.a8.view.col_slice(1, 100);  // not at a multiple of 16 bytes
  refused(g);
  g = good;
  g.transpose_b = Transpose::kNo;  // INT8 along the other axis
  refused(g);
  g = good;
  g.a = o.a16.cuda;  // from here on BF16 times INT8
  CHECK_FALSE(cuda::fused_gemm_supports(g, TensorCores::kSm80));
  refused(g);  // with scales of a
  g.a_scale = {};
  CHECK(cuda::fused_gemm_supports(g, TensorCores::kSm90));
  g.u = o.u.cuda;
  g.v = o.v.cuda;  // [n, r]
  refused(g);
  g = good;
  g.y = o.y.cuda.col_slice(3, 100);
  refused(g);
  g = good;
  g.y.dtype = DType::F32;
  refused(g);
  g = good;
  g.b = o.b8.view.row_slice(0, 199);  // columns of y that 16 bytes do not divide
  refused(g);
}

}  // namespace squareq::test
