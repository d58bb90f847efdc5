// What a run tells about itself: a line on the console, a line of JSON, and a picture of the loss at the end.
#pragma once

#include <cstdint>
#include <fstream>
#include <span>
#include <string>
#include <vector>

namespace squareq {

struct StepMetrics {
  std::int64_t step = 0;  // finished optimizer steps, from 1
  double loss = 0.0;      // mean over the samples of the step
  double learning_rate = 0.0;
  double grad_norm = 0.0;         // before clipping
  double sigma_mean = 0.0;        // mean noise level of the samples
  double seconds = 0.0;           // since the start of training
  double seconds_per_step = 0.0;  // recent average
};

class Metrics {
 public:
  // Starts `jsonl_path` anew; `total_steps` is where the run will end. Throws FileError.
  Metrics(std::string jsonl_path, std::int64_t total_steps);

  // Remembers the loss for the curve. When `logged`, also appends one flushed line of JSON and reports progress on the
  // console. Throws FileError if the line cannot be written; the lines before stay.
  void record(const StepMetrics& metrics, bool logged);

  // Writes the loss curve as SVG, all at once. Throws FileError.
  void write_curve(const std::string& svg_path, const std::string& title) const;

 private:
  std::string path_;
  std::int64_t total_steps_;
  std::ofstream file_;
  std::uintmax_t written_ = 0;  // bytes of whole lines
  std::vector<double> steps_;
  std::vector<double> losses_;
};

// "step 120/500  loss 0.1234  lr 1.0e-03  0.21 s/step  ETA 1:20"
std::string progress_line(const StepMetrics& metrics, std::int64_t total_steps);

// "0:05", "1:20", "2:03:04"; "?" for what is no duration.
std::string duration_text(double seconds);

// One JSON object without a line break; numbers that JSON cannot hold become null.
std::string metrics_line(const StepMetrics& metrics);

// A self-contained picture with axes: the losses as they are, and smoothed by an exponential mean. Values that are not
// finite are left out.
std::string loss_curve_svg(std::span<const double> steps, std::span<const double> losses, const std::string& title);

}  // namespace squareq
