// Lists of numbers against their reference, one line each, the worst last.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace squareq::bench {

struct Comparison {
  std::string name;
  double relative_l2 = 0.0;  // |value - reference| / |reference|
  double max_abs = 0.0;
  double limit = 0.0;  // of relative_l2

  bool passed() const { return relative_l2 <= limit; }  // false for NaN
};

// Throws FormatError if the sizes differ.
Comparison compare(std::string name, std::span<const float> value, std::span<const float> reference, double limit);

// Prints a table, or one JSON object {"comparisons": [...], "worst": ..., "passed": ...}; returns the exit status:
// 0 if all passed, else 1. An empty list does not pass.
int report(std::vector<Comparison> list, bool json);

}  // namespace squareq::bench
