#include "engine/metrics.h"

#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using squareq::test::contains;
using squareq::test::message_of;
using squareq::test::read_file;
using squareq::test::TempDir;

namespace {

StepMetrics at_step(std::int64_t step, double loss) {
  return {.step = step,
          .loss = loss,
          .learning_rate = 1e-3,
          .grad_norm = 0.5,
          .sigma_mean = 0.4,
          .seconds = 0.21 * static_cast<double>(step),
          .seconds_per_step = 0.21};
}

// Takes what the console would show, for as long as it lives.
class Console {
 public:
  Console() : before_(spdlog::default_logger()) {
    spdlog::set_default_logger(
        std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_st>(text_)));
  }
  ~Console() { spdlog::set_default_logger(before_); }
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;
  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::shared_ptr<spdlog::logger> before_;
};

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

}  // namespace

TEST_CASE("metrics: durations") {
  CHECK(duration_text(0.0) == "0:00");
  CHECK(duration_text(4.6) == "0:05");
  CHECK(duration_text(59.7) == "1:00");
  CHECK(duration_text(80.0) == "1:20");
  CHECK(duration_text(7384.0) == "2:03:04");
  CHECK(duration_text(360000.0) == "100:00:00");
  CHECK(duration_text(-1.0) == "?");
  CHECK(duration_text(NAN) == "?");
  CHECK(duration_text(INFINITY) == "?");
}

TEST_CASE("metrics: the line on the console") {
  CHECK(progress_line(at_step(120, 0.1234), 500) == "step 120/500  loss 0.1234  lr 1.0e-03  0.21 s/step  ETA 1:20");
  CHECK(contains(progress_line(at_step(500, 0.1), 500), "ETA 0:00"));
}

TEST_CASE("metrics: lines are JSON, written at once") {
  const TempDir folder;
  const Console console;
  Metrics metrics({.folder = folder.path().string(), .total_steps = 500});
  metrics.record(at_step(1, 0.75));
  metrics.record(at_step(3, NAN));
  metrics.record_validation(3, 0.25);
  std::istringstream lines(read_file(folder.file("metrics.jsonl")));
  std::string line;
  REQUIRE(std::getline(lines, line));
  const auto first = nlohmann::json::parse(line);
  CHECK(first["step"] == 1);
  CHECK(first["loss"] == 0.75);
  CHECK(first["learning_rate"] == 1e-3);
  CHECK(first["grad_norm"] == 0.5);
  CHECK(first["sigma_mean"] == 0.4);
  CHECK(first["seconds"] == 0.21);
  CHECK(first["seconds_per_step"] == 0.21);
  CHECK_FALSE(first.contains("skipped"));
  REQUIRE(std::getline(lines, line));
  CHECK(nlohmann::json::parse(line)["loss"].is_null());
  REQUIRE(std::getline(lines, line));
  CHECK(nlohmann::json::parse(line) == nlohmann::json{{"step", 3}, {"validation_loss", 0.25}});
  CHECK_FALSE(std::getline(lines, line));
  CHECK(contains(console.text(), "step 1/500  loss 0.7500"));
  CHECK(contains(console.text(), "step 3  validation loss 0.2500"));
}

TEST_CASE("metrics: without times a line is the same at any speed") {
  StepMetrics slow = at_step(2, 0.5);
  slow.seconds = slow.seconds_per_step = 100.0;
  slow.skipped = true;
  const auto line = nlohmann::json::parse(metrics_line(slow, false));
  CHECK_FALSE(line.contains("seconds"));
  CHECK_FALSE(line.contains("seconds_per_step"));
  CHECK(line["skipped"] == true);
}

TEST_CASE("metrics: going on, what was logged after the position is logged anew") {
  const TempDir folder;
  const Console console;
  const MetricsOptions options{.folder = folder.path().string(), .name = "run", .timestamps = false};
  Metrics::Positions positions;
  {
    Metrics metrics(options);
    metrics.record(at_step(1, 0.75));
    positions = metrics.sync();
    metrics.record(at_step(2, 0.7));
  }
  const std::string lines = read_file(folder.file("metrics.jsonl"));
  const std::string events = read_file(folder.file("events.out.tfevents.run"));
  Metrics(options, positions).record(at_step(2, 0.7));
  CHECK(read_file(folder.file("metrics.jsonl")) == lines);
  CHECK(read_file(folder.file("events.out.tfevents.run")) == events);

  std::filesystem::remove(folder.file("metrics.jsonl"));
  Metrics(options, positions).record(at_step(2, 0.7));
  CHECK(contains(console.text(), "metrics.jsonl is gone"));
  CHECK(read_file(folder.file("metrics.jsonl")) == metrics_line(at_step(2, 0.7), false) + "\n");
  test::write_file(folder.file("metrics.jsonl"), "");
  CHECK(contains(message_of<FormatError>([&] { Metrics(options, positions); }), "metrics.jsonl"));
}

TEST_CASE("metrics: a folder that is none") {
  const TempDir folder;
  test::write_file(folder.file("file"), "");
  CHECK(contains(message_of<FileError>([&] { Metrics({.folder = folder.file("file")}); }), "metrics.jsonl"));
}

TEST_CASE("metrics: the loss curve") {
  const TempDir folder;
  std::vector<double> losses;
  for (int i = 1; i <= 500; ++i) losses.push_back(0.1 + 0.6 / i);
  write_loss_curve(folder.file("loss.svg"), losses, "rank 8 & <more>");
  const std::string svg = read_file(folder.file("loss.svg"));
  CHECK(svg.starts_with("<svg xmlns='http://www.w3.org/2000/svg'"));
  CHECK(svg.ends_with("</svg>\n"));
  CHECK(count_of(svg, "<polyline") == 2);
  CHECK(contains(svg, "rank 8 &amp; &lt;more&gt;"));
  CHECK(contains(svg, ">500</text>"));
  CHECK(contains(svg, ">step</text>"));
  CHECK(contains(svg, ">loss</text>"));
  CHECK(contains(svg, ">0.2</text>"));
  CHECK_FALSE(contains(svg, "nan"));
  CHECK_FALSE(contains(svg, "href"));
  CHECK(
      contains(message_of<FileError>([&] { write_loss_curve(folder.file("none/loss.svg"), losses, ""); }), "loss.svg"));
}

TEST_CASE("metrics: loss curves of odd runs") {
  const std::vector<double> none;
  CHECK(contains(loss_curve_svg(none, none, "t"), "no steps yet"));
  CHECK(contains(loss_curve_svg(std::vector<double>{1.0}, std::vector<double>{NAN}, "t"), "no steps yet"));
  const std::string one = loss_curve_svg(std::vector<double>{1.0}, std::vector<double>{0.5}, "t");
  CHECK(count_of(one, "<polyline") == 2);
  const std::string flat = loss_curve_svg(std::vector<double>{1, 2, 3}, std::vector<double>{0, 0, 0}, "t");
  CHECK_FALSE(contains(flat, "nan"));
  CHECK_FALSE(contains(flat, "inf"));
  std::vector<double> steps;
  std::vector<double> losses;
  for (int i = 0; i < 100000; ++i) {
    steps.push_back(i);
    losses.push_back(std::exp(-i / 1e4));
  }
  CHECK(loss_curve_svg(steps, losses, "t").size() < 100000);
}
