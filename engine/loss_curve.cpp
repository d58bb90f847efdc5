#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/metrics.h"
#include "io/file.h"

namespace squareq {
namespace {

constexpr double kWidth = 800.0;
constexpr double kHeight = 450.0;
constexpr double kLeft = 70.0;
constexpr double kRight = 20.0;
constexpr double kTop = 45.0;
constexpr double kBottom = 55.0;
constexpr std::size_t kMaxPoints = 2000;  // of the raw line; more cannot be told apart at this width

// A range of values and the places of its tick marks, which are multiples of 1, 2 or 5 times a power of ten.
struct Axis {
  double low = 0.0;
  double high = 1.0;
  double tick = 1.0;

  Axis(double smallest, double largest, int wanted_ticks) {
    if (!(largest > smallest)) {
      const double margin = std::max(std::abs(smallest) * 0.1, 1e-6);
      smallest -= margin;
      largest += margin;
    }
    const double rough = (largest - smallest) / wanted_ticks;
    const double power = std::pow(10.0, std::floor(std::log10(rough)));
    const double lead = rough / power;
    tick = power * (lead <= 1.0 ? 1.0 : lead <= 2.0 ? 2.0 : lead <= 5.0 ? 5.0 : 10.0);
    low = std::floor(smallest / tick) * tick;
    high = std::ceil(largest / tick) * tick;
  }
  int ticks() const { return static_cast<int>(std::lround((high - low) / tick)); }
  double at(int i) const { return low + i * tick; }
  double fraction(double value) const { return (value - low) / (high - low); }
};

double x_of(const Axis& axis, double step) { return kLeft + axis.fraction(step) * (kWidth - kLeft - kRight); }
double y_of(const Axis& axis, double loss) {
  return kHeight - kBottom - axis.fraction(loss) * (kHeight - kTop - kBottom);
}

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      default: result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return result;
}

std::string grid(const Axis& x, const Axis& y) {
  std::string svg;
  for (int i = 0; i <= x.ticks(); ++i) {
    const double at = x_of(x, x.at(i));
    svg += fmt::format("<line x1='{0:.1f}' x2='{0:.1f}' y1='{1}' y2='{2}' stroke='#e4e4e4'/>\n", at, kTop,
                       kHeight - kBottom);
    svg += fmt::format("<text x='{:.1f}' y='{}' text-anchor='middle'>{:.6g}</text>\n", at, kHeight - kBottom + 18.0,
                       x.at(i));
  }
  for (int i = 0; i <= y.ticks(); ++i) {
    const double at = y_of(y, y.at(i));
    const double value = std::abs(y.at(i)) < y.tick * 1e-6 ? 0.0 : y.at(i);
    svg += fmt::format("<line x1='{1}' x2='{2}' y1='{0:.1f}' y2='{0:.1f}' stroke='#e4e4e4'/>\n", at, kLeft,
                       kWidth - kRight);
    svg += fmt::format("<text x='{}' y='{:.1f}' text-anchor='end'>{:.6g}</text>\n", kLeft - 8.0, at + 4.0, value);
  }
  svg += fmt::format("<rect x='{}' y='{}' width='{}' height='{}' fill='none' stroke='#444444'/>\n", kLeft, kTop,
                     kWidth - kLeft - kRight, kHeight - kTop - kBottom);
  svg += fmt::format("<text x='{}' y='{}' text-anchor='middle'>step</text>\n", (kLeft + kWidth - kRight) / 2.0,
                     kHeight - 14.0);
  const double middle = (kTop + kHeight - kBottom) / 2.0;
  svg += fmt::format("<text x='18' y='{0}' text-anchor='middle' transform='rotate(-90 18 {0})'>loss</text>\n", middle);
  return svg;
}

std::string polyline(const Axis& x, const Axis& y, std::span<const double> steps, std::span<const double> losses,
                     const std::string& style) {
  std::string points;
  const std::size_t stride = std::max<std::size_t>(1, (steps.size() + kMaxPoints - 1) / kMaxPoints);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    if (i % stride != 0 && i + 1 != steps.size()) continue;
    points += fmt::format("{:.1f},{:.1f} ", x_of(x, steps[i]), y_of(y, losses[i]));
  }
  return fmt::format("<polyline fill='none' {} points='{}'/>\n", style, points);
}

// Exponential mean over about 1/25 of the run, without the pull towards zero at its start.
std::vector<double> smoothed(std::span<const double> losses) {
  const double keep = 1.0 - 1.0 / std::max(2.0, static_cast<double>(losses.size()) / 25.0);
  std::vector<double> result;
  double sum = 0.0;
  double weight = 0.0;
  for (const double loss : losses) {
    sum = keep * sum + (1.0 - keep) * loss;
    weight = keep * weight + (1.0 - keep);
    result.push_back(sum / weight);
  }
  return result;
}

std::string legend() {
  const double x = kWidth - kRight - 190.0;
  return fmt::format(
      "<line x1='{0}' x2='{1}' y1='30' y2='30' stroke='#9ecae1' stroke-width='1.5'/><text x='{2}' y='34'>each "
      "step</text>\n"
      "<line x1='{3}' x2='{4}' y1='30' y2='30' stroke='#d9480f' stroke-width='2.5'/><text x='{5}' "
      "y='34'>smoothed</text>\n",
      x, x + 20.0, x + 26.0, x + 100.0, x + 120.0, x + 126.0);
}

}  // namespace

std::string loss_curve_svg(std::span<const double> steps, std::span<const double> losses, const std::string& title) {
  std::vector<double> x;
  std::vector<double> y;
  for (std::size_t i = 0; i < std::min(steps.size(), losses.size()); ++i) {
    if (!std::isfinite(steps[i]) || !std::isfinite(losses[i])) continue;
    x.push_back(steps[i]);
    y.push_back(losses[i]);
  }
  std::string svg = fmt::format(
      "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {0} {1}' width='{0}' height='{1}' "
      "font-family='sans-serif' font-size='13' fill='#222222'>\n<rect width='100%' height='100%' fill='#ffffff'/>\n"
      "<text x='{2}' y='28' font-size='16'>{3}</text>\n",
      kWidth, kHeight, kLeft, escaped(title));
  if (x.empty()) return svg + fmt::format("<text x='{}' y='{}'>no steps yet</text>\n</svg>\n", kLeft, kHeight / 2.0);
  const auto [first, last] = std::minmax_element(x.begin(), x.end());
  const auto [least, most] = std::minmax_element(y.begin(), y.end());
  const Axis steps_axis(*first, *last, 8);
  const Axis loss_axis(std::min(0.0, *least), *most, 8);
  svg += grid(steps_axis, loss_axis) + legend();
  svg += polyline(steps_axis, loss_axis, x, y, "stroke='#9ecae1' stroke-width='1'");
  svg += polyline(steps_axis, loss_axis, x, smoothed(y), "stroke='#d9480f' stroke-width='2.5'");
  return svg + "</svg>\n";
}

void write_loss_curve(const std::string& svg_path, std::span<const double> losses, const std::string& title) {
  std::vector<double> steps(losses.size());
  std::iota(steps.begin(), steps.end(), 1.0);
  write_atomically(svg_path, loss_curve_svg(steps, losses, title));
}

}  // namespace squareq
