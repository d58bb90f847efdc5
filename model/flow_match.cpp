#include "model/flow_match.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace squareq {
namespace {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double unscaled_sigma(Random& random, const TimestepSettings& s, std::int64_t image_tokens) {
  const auto on_grid = [&](double u) {  // of 1000 falling levels
    return constant_shift((1000.0 - std::clamp(std::floor(1000.0 * u), 0.0, 999.0)) / 1000.0, s.shift);
  };
  switch (s.kind) {
    case TimestepSampling::kUniform: return random.uniform();
    case TimestepSampling::kSigmoid: return sigmoid(s.sigmoid_scale * random.normal());
    case TimestepSampling::kLogitNormal: return sigmoid(s.logit_mean + s.logit_std * random.normal());
    case TimestepSampling::kShift: return constant_shift(sigmoid(s.sigmoid_scale * random.normal()), s.shift);
    case TimestepSampling::kSigma: return on_grid(random.uniform());
    case TimestepSampling::kMode: {
      const double u = random.uniform();
      const double cosine = std::cos(std::numbers::pi * u / 2.0);
      return on_grid(1.0 - u - s.mode_scale * (cosine * cosine - 1.0 + u));
    }
    case TimestepSampling::kContent: return 1.0 - std::pow(random.uniform(), 3.0);
    case TimestepSampling::kStyle: return std::pow(random.uniform(), 3.0);
    case TimestepSampling::kFluxShift: break;
  }
  return constant_shift(sigmoid(s.sigmoid_scale * random.normal()), std::exp(s.schedule.mu(image_tokens)));
}

}  // namespace

double constant_shift(double sigma, double s) { return s * sigma / (1.0 + (s - 1.0) * sigma); }

double ScheduleShift::mu(std::int64_t tokens) const {
  const double slope = (max_shift - base_shift) / static_cast<double>(max_tokens - base_tokens);
  return base_shift + slope * static_cast<double>(tokens - base_tokens);
}

double ScheduleShift::operator()(double sigma, std::int64_t tokens) const {
  return constant_shift(sigma, dynamic ? std::exp(mu(tokens)) : constant);
}

double loss_weight(LossWeighting weighting, double sigma) {
  const auto bell = [](double x) {
    // The mean over sigma in [0, 1] of exp(-2 (sigma - 1/2)^2) is sqrt(pi / 2) erf(1 / sqrt(2)).
    const double ends = std::exp(-0.5);
    const double mean = std::sqrt(std::numbers::pi / 2.0) * std::erf(1.0 / std::numbers::sqrt2) - ends;
    return (std::exp(-2.0 * (x - 0.5) * (x - 0.5)) - ends) / mean;
  };
  switch (weighting) {
    case LossWeighting::kNone: return 1.0;
    case LossWeighting::kSigmaSqrt: return 1.0 / (sigma * sigma);
    case LossWeighting::kCosmap: return 2.0 / (std::numbers::pi * (1.0 - 2.0 * sigma + 2.0 * sigma * sigma));
    case LossWeighting::kBell: return bell(sigma);
    case LossWeighting::kBellFlat: break;
  }
  return bell(std::max(sigma, 0.5));
}

double sample_sigma(Random& random, const TimestepSettings& settings, std::int64_t image_tokens) {
  const double sigma = unscaled_sigma(random, settings, image_tokens);
  return settings.sigma_min + (settings.sigma_max - settings.sigma_min) * sigma;
}

std::vector<double> sigma_schedule(std::int64_t steps, const ScheduleShift& shift, std::int64_t image_tokens) {
  std::vector<double> sigmas;
  for (std::int64_t i = 0; i <= steps; ++i) {
    sigmas.push_back(shift(1.0 - static_cast<double>(i) / static_cast<double>(steps), image_tokens));
  }
  return sigmas;
}

void offset_noise(std::span<float> noise, std::int64_t features, double strength, Random& random) {
  constexpr std::int64_t kPatch = 4;  // latent pixels of a token
  std::vector<float> offsets(static_cast<std::size_t>(features / kPatch));
  random.fill_normal(offsets, static_cast<float>(strength));
  for (std::size_t i = 0; i < noise.size(); ++i) {
    noise[i] += offsets[i % static_cast<std::size_t>(features) / kPatch];
  }
}

void mix_noise(std::span<const float> data, std::span<const float> noise, float sigma, std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = (1.0F - sigma) * data[i] + sigma * noise[i];
}

void velocity_target(std::span<const float> data, std::span<const float> noise, std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = noise[i] - data[i];
}

}  // namespace squareq
