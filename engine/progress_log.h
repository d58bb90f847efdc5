// Progress of long work on the console.
#pragma once

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "engine/metrics.h"

namespace squareq {

class ProgressLog {
 public:
  explicit ProgressLog(std::string what) : what_(std::move(what)) {}

  // At most one line a second, and one at the end.
  void operator()(double done, double total) {
    const double seconds = elapsed(start_);
    if (elapsed(last_) < 1.0 && done < total) return;
    last_ = Clock::now();
    spdlog::info("{}: {:.0f} %  ETA {}", what_, 100.0 * done / total,
                 duration_text(seconds * (total - done) / std::max(done, 1.0)));
  }

 private:
  using Clock = std::chrono::steady_clock;
  static double elapsed(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }
  std::string what_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
};

}  // namespace squareq
