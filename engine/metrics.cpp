#include "engine/metrics.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <cmath>
#include <filesystem>

namespace squareq {
namespace {

constexpr const char* kLines = "metrics.jsonl";

std::string events_name(const MetricsOptions& options) {
  return fmt::format("events.out.{}.{}", kEventFileMark, options.name);
}

std::string file_in(const MetricsOptions& options, const std::string& name) {
  return (std::filesystem::path(options.folder) / name).string();
}

std::uint64_t position_of(const MetricsOptions& options, const Metrics::Positions& positions, const std::string& name) {
  const auto found = positions.find(name);
  if (found == positions.end()) return 0;
  if (std::filesystem::exists(file_in(options, name))) return found->second;
  spdlog::warn("{} is gone: it starts anew", file_in(options, name));
  return 0;
}

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

std::string metrics_line(const StepMetrics& m, bool times) {
  std::string line = fmt::format(R"({{"step": {}, "loss": {}, "learning_rate": {}, "grad_norm": {}, "sigma_mean": {})",
                                 m.step, json_number(m.loss), json_number(m.learning_rate), json_number(m.grad_norm),
                                 json_number(m.sigma_mean));
  if (m.skipped) line += R"(, "skipped": true)";
  if (times) {
    line += fmt::format(R"(, "seconds": {}, "seconds_per_step": {})", json_number(m.seconds),
                        json_number(m.seconds_per_step));
  }
  return line + "}";
}

Metrics::Metrics(const MetricsOptions& options, const Positions& positions)
    : options_(options),
      lines_(file_in(options, kLines), position_of(options, positions, kLines)),
      events_(file_in(options, events_name(options)), position_of(options, positions, events_name(options)),
              options.timestamps) {}

void Metrics::record(const StepMetrics& m) {
  lines_.append(metrics_line(m, options_.timestamps) + '\n');
  if (!m.skipped) {
    events_.scalar(m.step, "loss", m.loss);
    events_.scalar(m.step, "grad_norm", m.grad_norm);
  }
  events_.scalar(m.step, "learning_rate", m.learning_rate);
  spdlog::info("{}", progress_line(m, options_.total_steps));
}

void Metrics::record_validation(std::int64_t step, double loss) {
  lines_.append(fmt::format(R"({{"step": {}, "validation_loss": {}}})", step, json_number(loss)) + '\n');
  events_.scalar(step, "validation_loss", loss);
  spdlog::info("step {}  validation loss {:.4f}", step, loss);
}

void Metrics::record_preview(std::int64_t step, std::size_t prompt, std::string_view png) {
  events_.image(step, fmt::format("preview/{}", prompt), png);
}

Metrics::Positions Metrics::sync() {
  lines_.sync();
  events_.sync();
  return {{kLines, lines_.position()}, {events_name(options_), events_.position()}};
}

}  // namespace squareq
