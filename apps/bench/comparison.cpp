#include "apps/bench/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"

namespace squareq::bench {
namespace {

// Error in units of the limit. NaN counts as the largest, no error as none even where the limit is 0.
double severity(const Comparison& c) {
  if (c.relative_l2 == 0.0) return 0.0;
  return std::isnan(c.relative_l2) ? std::numeric_limits<double>::infinity() : c.relative_l2 / c.limit;
}

}  // namespace

Comparison compare(std::string name, std::span<const float> value, std::span<const float> reference, double limit) {
  if (value.size() != reference.size()) {
    throw FormatError({.where = "tensor '" + name + "'",
                       .found = std::to_string(reference.size()) + " reference values",
                       .expected = std::to_string(value.size()) + ", the number that the model gives"});
  }
  Comparison c{.name = std::move(name), .limit = limit};
  double error = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < value.size(); ++i) {
    const double d = static_cast<double>(value[i]) - static_cast<double>(reference[i]);
    error += d * d;
    norm += static_cast<double>(reference[i]) * static_cast<double>(reference[i]);
    if (!(std::fabs(d) <= c.max_abs)) c.max_abs = std::fabs(d);
  }
  // A reference of zeros has no relative error; the absolute one then has to be small.
  c.relative_l2 = norm > 0.0 ? std::sqrt(error / norm) : std::sqrt(error);
  return c;
}

int report(std::vector<Comparison> list, bool json) {
  const auto worst = std::max_element(
      list.begin(), list.end(), [](const Comparison& a, const Comparison& b) { return severity(a) < severity(b); });
  const bool passed =
      !list.empty() && std::all_of(list.begin(), list.end(), [](const Comparison& c) { return c.passed(); });
  if (json) {
    nlohmann::json out{{"passed", passed}, {"comparisons", nlohmann::json::array()}};
    for (const Comparison& c : list) {
      out["comparisons"].push_back({{"name", c.name},
                                    {"relative_l2", c.relative_l2},
                                    {"max_abs", c.max_abs},
                                    {"limit", c.limit},
                                    {"passed", c.passed()}});
    }
    if (!list.empty()) out["worst"] = worst->name;
    fmt::print("{}\n", out.dump(1));
    return passed ? 0 : 1;
  }
  const auto print = [](const Comparison& c, const char* label) {
    fmt::print("{}{:<50} {:10.3e} {:10.3e} {:9.1e}  {}\n", label, c.name, c.relative_l2, c.max_abs, c.limit,
               c.passed() ? "ok" : "EXCEEDED");
  };
  fmt::print("{:<50} {:>10} {:>10} {:>9}\n", "tensor", "rel. L2", "max abs", "limit");
  for (const Comparison& c : list) print(c, "");
  if (!list.empty()) print(*worst, "worst: ");
  fmt::print("{} of {} within their limits\n",
             std::count_if(list.begin(), list.end(), [](const Comparison& c) { return c.passed(); }), list.size());
  return passed ? 0 : 1;
}

}  // namespace squareq::bench
