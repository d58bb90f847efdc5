// Products of two thin matrices, up [rows, rank] times down [rank, cols], which are never multiplied out: everything
// happens in rank x rank, in double precision, on the CPU.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace squareq {

struct LowRankProduct {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t rank = 0;
  std::vector<float> up;    // [rows, rank]
  std::vector<float> down;  // [rank, cols]
};

// Singular values of the product, largest first: the smallest of rank, rows and cols in number.
std::vector<double> singular_values(const LowRankProduct& product);

// The product of rank `rank` that is nearest in the Frobenius norm (Eckart and Young): the largest singular values,
// whose square roots go into both matrices. Terms of zeros fill up where there are fewer. `kept` is the Frobenius norm
// of the result divided by that of `product`, 1 if that is 0. Throws NumericError if the decomposition fails.
struct Truncation {
  LowRankProduct product;
  double kept = 1.0;
};
Truncation truncate(const LowRankProduct& product, std::int64_t rank);

}  // namespace squareq
