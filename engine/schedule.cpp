#include "engine/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace squareq {
namespace {

constexpr std::int64_t kSettled = 20;  // updates before the mean of norms is worth something
constexpr double kNormMemory = 0.98;   // the mean is over some 50 updates

// From 1 at done = 0 to 0 at done = 1.
double course(const TrainingConfig& config, double done) {
  using Schedule = TrainingConfig::Schedule;
  const auto cosine = [](double x) { return 0.5 * (1.0 + std::cos(std::numbers::pi * x)); };
  switch (config.lr_schedule) {
    case Schedule::kConstant: return 1.0;
    case Schedule::kLinear: return 1.0 - done;
    case Schedule::kCosine: return cosine(done);
    case Schedule::kCosineRestarts: {
      const double turns = done * static_cast<double>(config.lr_cycles);
      return cosine(turns - std::floor(turns));
    }
    case Schedule::kPolynomial: break;
  }
  return std::pow(1.0 - done, config.lr_power);
}

}  // namespace

double learning_rate(const TrainingConfig& config, std::int64_t step) {
  const double peak = config.learning_rate;
  if (step <= config.warmup_steps) return peak * static_cast<double>(step) / static_cast<double>(config.warmup_steps);
  const auto rest = static_cast<double>(std::max<std::int64_t>(1, config.steps - config.warmup_steps));
  const double done = static_cast<double>(step - 1 - config.warmup_steps) / rest;
  return peak * (config.lr_end + (1.0 - config.lr_end) * course(config, done));
}

double clip_factor(double norm, double max_norm) { return max_norm > 0.0 && norm > max_norm ? max_norm / norm : 1.0; }

double average_weight(double decay, std::int64_t update) {
  const auto n = static_cast<double>(update);
  return 1.0 - std::min(decay, (1.0 + n) / (10.0 + n));
}

std::string reason_to_skip(const TrainingConfig& config, const GuardMemory& guard, double loss, double norm) {
  // The sign of a NaN says nothing.
  if (!std::isfinite(loss)) return fmt::format("loss {}", std::fabs(loss));
  if (!std::isfinite(norm)) return fmt::format("gradient norm {}", std::fabs(norm));
  if (config.spike_factor > 0.0 && guard.updates >= kSettled && norm > config.spike_factor * guard.mean_norm) {
    return fmt::format("gradient norm {:.3g}, {:.0f} times its running mean", norm, norm / guard.mean_norm);
  }
  return {};
}

void remember(GuardMemory& guard, double norm) {
  ++guard.updates;
  // A plain mean at first, so that the first norms do not weigh too much.
  const double weight = std::max(1.0 - kNormMemory, 1.0 / static_cast<double>(guard.updates));
  guard.mean_norm += weight * (norm - guard.mean_norm);
}

}  // namespace squareq
