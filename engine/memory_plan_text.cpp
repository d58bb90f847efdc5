#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "engine/memory_plan.h"

namespace squareq {
std::string plan_text(const MemoryPlan& plan) {
  constexpr std::array<std::string_view, kMemoryUses> kTitles{"driver", "adapters",    "weights", "prepared",
                                                              "slots",  "activations", "scratch"};
  constexpr std::string_view kLetters = "daWPSAs";
  constexpr double kWidth = 40.0;
  std::string text = fmt::format("{:<17}", "GiB");
  for (const std::string_view title : kTitles) text += fmt::format("{:>12}", title);
  text += fmt::format("{:>9}\n", "sum");
  for (const Phase& phase : plan.phases) {
    std::string bar;
    double end = 0.0;
    text += fmt::format("{:<17}", phase.name);
    for (std::size_t use = 0; use < kMemoryUses; ++use) {
      text += fmt::format("{:12.3f}", gib(phase.bytes[use]));
      end += static_cast<double>(phase.bytes[use]) / static_cast<double>(plan.budget) * kWidth;
      bar.resize(std::max(bar.size(), static_cast<std::size_t>(std::lround(end))), kLetters[use]);
    }
    bar.resize(std::max(bar.size(), static_cast<std::size_t>(kWidth)), '.');
    text += fmt::format("{:9.3f}  [{}]\n", gib(phase.total()), bar);
  }
  text += fmt::format("largest: {:.3f} of {:.3f} GiB; from training on the phases share one allocation\n{}",
                      gib(plan.total()), gib(plan.budget), plan.summary);
  text += fmt::format("{:.3f} s/step predicted for {}{}\n", plan.seconds, plan.rates.name,
                      plan.rates.projected ? ", a projection: nothing was measured" : "");
  return text;
}

}  // namespace squareq
