// What a run tells about itself: a line on the console, a line of JSON, and a picture of the loss at the end.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.h"
#include "io/tensorboard.h"

namespace squareq {

struct StepMetrics {
  std::int64_t step = 0;  // finished optimizer steps, from 1
  double loss = 0.0;      // mean over the samples of the step
  double learning_rate = 0.0;
  double grad_norm = 0.0;         // before clipping
  double sigma_mean = 0.0;        // mean noise level of the samples
  double seconds = 0.0;           // since the start of training
  double seconds_per_step = 0.0;  // since this process started training
  bool skipped = false;           // the adapters were left alone
};

// Where and how a run logs.
struct MetricsOptions {
  std::string folder;
  std::string name = "lora";
  std::int64_t total_steps = 0;  // where the run will end
  bool timestamps = true;        // false: files do not tell times
};

// The log files of a run: metrics.jsonl, one line of JSON for each step that is logged and for each validation, and an
// event file for TensorBoard. Both are appended to, one whole record at a time.
class Metrics {
 public:
  // Bytes of each file, by its name.
  using Positions = std::map<std::string, std::uint64_t>;

  // Goes on after the records up to `positions`; a file without one, or that is not there any more, starts anew.
  // Throws FileError, and FormatError if a file is shorter than its position.
  explicit Metrics(const MetricsOptions& options, const Positions& positions = {});

  // A step, with a line on the console. Throws FileError if it cannot be written; what was written before stays.
  void record(const StepMetrics& metrics);
  void record_validation(std::int64_t step, double loss);
  // `png`: the bytes of the file; `prompt`: its number.
  void record_preview(std::int64_t step, std::size_t prompt, std::string_view png);

  // Makes all records durable and tells where they end.
  Positions sync();

 private:
  MetricsOptions options_;
  AppendFile lines_;
  EventWriter events_;
};

// Writes the loss curve as SVG, all at once. losses[i] is that of step i + 1. Throws FileError.
void write_loss_curve(const std::string& svg_path, std::span<const double> losses, const std::string& title);

// "step 120/500  loss 0.1234  lr 1.0e-03  0.21 s/step  ETA 1:20"
std::string progress_line(const StepMetrics& metrics, std::int64_t total_steps);

// "0:05", "1:20", "2:03:04"; "?" for what is no duration.
std::string duration_text(double seconds);

// One JSON object without a line break; numbers that JSON cannot hold become null. The last two fields only with
// `times`.
std::string metrics_line(const StepMetrics& metrics, bool times = true);

// A self-contained picture with axes: the losses as they are, and smoothed by an exponential mean. Values that are not
// finite are left out.
std::string loss_curve_svg(std::span<const double> steps, std::span<const double> losses, const std::string& title);

}  // namespace squareq
