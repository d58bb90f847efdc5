#include "engine/metrics.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <cmath>
#include <filesystem>

#include "kernels/base/error.h"

namespace squareq {
namespace {

std::string json_number(double value) { return std::isfinite(value) ? fmt::format("{:.9g}", value) : "null"; }

}  // namespace

std::string duration_text(double seconds) {
  if (!(seconds >= 0.0) || seconds > 1e9) return "?";
  const auto total = static_cast<std::int64_t>(std::llround(seconds));
  const std::int64_t hours = total / 3600;
  const std::int64_t minutes = total / 60 % 60;
  if (hours > 0) return fmt::format("{}:{:02}:{:02}", hours, minutes, total % 60);
  return fmt::format("{}:{:02}", minutes, total % 60);
}

std::string progress_line(const StepMetrics& m, std::int64_t total_steps) {
  const double left = static_cast<double>(total_steps - m.step) * m.seconds_per_step;
  return fmt::format("step {}/{}  loss {:.4f}  lr {:.1e}  {:.2f} s/step  ETA {}", m.step, total_steps, m.loss,
                     m.learning_rate, m.seconds_per_step, duration_text(left));
}

std::string metrics_line(const StepMetrics& m) {
  return fmt::format(
      R"({{"step": {}, "loss": {}, "learning_rate": {}, "grad_norm": {}, "sigma_mean": {}, "seconds": {}, )"
      R"("seconds_per_step": {}}})",
      m.step, json_number(m.loss), json_number(m.learning_rate), json_number(m.grad_norm), json_number(m.sigma_mean),
      json_number(m.seconds), json_number(m.seconds_per_step));
}

Metrics::Metrics(std::string jsonl_path, std::int64_t total_steps)
    : path_(std::move(jsonl_path)), total_steps_(total_steps) {
  std::error_code error;
  const auto folder = std::filesystem::path(path_).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  file_.open(path_, std::ios::trunc);
  if (!file_) {
    throw FileError({path_, error ? error.message() : std::string("a file that cannot be created"), "a writable file",
                     "check output_dir"});
  }
}

void Metrics::record(const StepMetrics& metrics, bool logged) {
  steps_.push_back(static_cast<double>(metrics.step));
  losses_.push_back(metrics.loss);
  if (!logged) return;
  const std::string line = metrics_line(metrics) + '\n';
  file_ << line << std::flush;
  if (!file_) {
    // Half a line is no JSON.
    std::error_code ignored;
    file_.close();
    std::filesystem::resize_file(path_, written_, ignored);
    throw FileError({path_, "an error while writing", "room for another line", "check the disk"});
  }
  written_ += line.size();
  spdlog::info("{}", progress_line(metrics, total_steps_));
}

}  // namespace squareq
