#include "kernels/low_rank.h"

#include <cmath>

#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;

namespace {

LowRankProduct random_product(std::int64_t rows, std::int64_t cols, std::int64_t rank) {
  LowRankProduct p{.rows = rows, .cols = cols, .rank = rank};
  p.up.resize(static_cast<std::size_t>(rows * rank));
  p.down.resize(static_cast<std::size_t>(rank * cols));
  test::fill_random(p.up, 1);
  test::fill_random(p.down, 2);
  return p;
}

std::vector<double> multiplied(const LowRankProduct& p) {
  std::vector<double> result(static_cast<std::size_t>(p.rows * p.cols));
  for (std::int64_t i = 0; i < p.rows; ++i) {
    for (std::int64_t j = 0; j < p.cols; ++j) {
      for (std::int64_t k = 0; k < p.rank; ++k) {
        result[static_cast<std::size_t>(i * p.cols + j)] +=
            static_cast<double>(p.up[static_cast<std::size_t>(i * p.rank + k)]) *
            static_cast<double>(p.down[static_cast<std::size_t>(k * p.cols + j)]);
      }
    }
  }
  return result;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

}  // namespace

TEST_CASE("low rank: singular values of a product that has them by construction") {
  // Columns of the 4 x 4 Hadamard matrix are orthogonal, of length 2.
  LowRankProduct p{.rows = 4, .cols = 4, .rank = 3};
  const float h[4][3] = {{1, 1, 1}, {1, -1, 1}, {1, 1, -1}, {1, -1, -1}};
  const float values[3] = {1, 5, 3};
  for (const auto& row : h) {
    for (int k = 0; k < 3; ++k) p.up.push_back(row[k] * values[k] / 4.0F);
  }
  for (int k = 0; k < 3; ++k) {
    for (const auto& row : h) p.down.push_back(row[k]);
  }
  const std::vector<double> found = singular_values(p);
  REQUIRE(found.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) CHECK(!(std::fabs(found[i] - std::array{5.0, 3.0, 1.0}[i]) > 1e-12));
  const Truncation one = truncate(p, 1);
  CHECK(!(std::fabs(one.kept - 5.0 / std::sqrt(35.0)) > 1e-12));
}

TEST_CASE("low rank: truncation misses by exactly the values left out") {
  const auto [rows, cols, rank] =
      GENERATE(std::array<std::int64_t, 3>{30, 20, 6}, std::array<std::int64_t, 3>{5, 40, 12},
               std::array<std::int64_t, 3>{40, 7, 9});
  const LowRankProduct p = random_product(rows, cols, rank);
  const std::vector<double> values = singular_values(p);
  REQUIRE(static_cast<std::int64_t>(values.size()) == std::min({rows, cols, rank}));
  for (std::int64_t keep = 1; keep <= rank + 2; ++keep) {
    const Truncation t = truncate(p, keep);
    REQUIRE(t.product.rank == keep);
    REQUIRE(static_cast<std::int64_t>(t.product.up.size()) == rows * keep);
    double tail = 0.0;
    for (std::size_t i = static_cast<std::size_t>(keep); i < values.size(); ++i) tail += values[i] * values[i];
    CHECK(!(std::fabs(distance(multiplied(t.product), multiplied(p)) - std::sqrt(tail)) > 1e-5 * values[0]));
  }
}

TEST_CASE("low rank: a product of nothing") {
  LowRankProduct p = random_product(6, 5, 2);
  std::fill(p.up.begin(), p.up.end(), 0.0F);
  const Truncation t = truncate(p, 1);
  CHECK(t.kept == 1.0);
  CHECK(t.product.up == std::vector<float>(6));
}
