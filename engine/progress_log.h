// Progress of long work on the console, and what it takes.
#pragma once

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "engine/metrics.h"
#include "kernels/device.h"

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

// What the driver reports at the end of a phase, beside the plan; a device of host memory has no driver to ask.
inline void log_memory(const std::string& phase, const Device& device) {
  if (device.reads_host_memory()) return;
  spdlog::info("{}: {:.1f} MiB of {} are in use", phase, static_cast<double>(device.memory().ours) / 0x1p20,
               device.name());
}

}  // namespace squareq
