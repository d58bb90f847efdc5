#include "apps/bench/families.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace squareq::bench {
namespace {

// Calls visit(family, time) for each family that took time.
template <class Visit>
void each(const KernelTimes& times, Visit visit) {
  for (std::size_t i = 0; i < times.size(); ++i) {
    if (times[i].seconds > 0.0) visit(static_cast<KernelFamily>(i), times[i]);
  }
}

}  // namespace

void print_families(const KernelTimes& times) {
  double total = 0.0;
  each(times, [&](KernelFamily, const FamilyTime& t) { total += t.seconds; });
  each(times, [&](KernelFamily family, const FamilyTime& t) {
    const char* unit = counts_operations(family) ? "TFLOP/s" : "TB/s";
    const std::string rate = t.work > 0.0 ? fmt::format("{:8.2f} {}", t.work / t.seconds * 1e-12, unit) : "";
    fmt::print("  {:<14} {:9.3f} ms {:6.1f} %  {}\n", name_of(family), t.seconds * 1e3, t.seconds / total * 100.0,
               rate);
  });
}

nlohmann::json families_json(const KernelTimes& times) {
  nlohmann::json json;
  each(times, [&](KernelFamily family, const FamilyTime& t) {
    json[name_of(family)] = {{"seconds", t.seconds}, {counts_operations(family) ? "flop" : "bytes", t.work}};
  });
  return json;
}

}  // namespace squareq::bench
