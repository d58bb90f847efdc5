#include "model/flow_match.h"

#include <cmath>

namespace squareq {
namespace {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

}  // namespace

double constant_shift(double sigma, double s) { return s * sigma / (1.0 + (s - 1.0) * sigma); }

double ScheduleShift::mu(std::int64_t tokens) const {
  const double slope = (max_shift - base_shift) / static_cast<double>(max_tokens - base_tokens);
  return base_shift + slope * static_cast<double>(tokens - base_tokens);
}

double ScheduleShift::operator()(double sigma, std::int64_t tokens) const {
  return constant_shift(sigma, dynamic ? std::exp(mu(tokens)) : constant);
}

double sample_sigma(Random& random, const TimestepSettings& settings, std::int64_t image_tokens) {
  const TimestepSettings& s = settings;
  switch (s.kind) {
    case TimestepSampling::kUniform: return random.uniform();
    case TimestepSampling::kSigmoid: return sigmoid(s.sigmoid_scale * random.normal());
    case TimestepSampling::kLogitNormal: return sigmoid(s.logit_mean + s.logit_std * random.normal());
    case TimestepSampling::kShift: return constant_shift(sigmoid(s.sigmoid_scale * random.normal()), s.shift);
    case TimestepSampling::kFluxShift: break;
  }
  return constant_shift(sigmoid(s.sigmoid_scale * random.normal()), std::exp(s.schedule.mu(image_tokens)));
}

std::vector<double> sigma_schedule(std::int64_t steps, const ScheduleShift& shift, std::int64_t image_tokens) {
  std::vector<double> sigmas;
  for (std::int64_t i = 0; i <= steps; ++i) {
    sigmas.push_back(shift(1.0 - static_cast<double>(i) / static_cast<double>(steps), image_tokens));
  }
  return sigmas;
}

void mix_noise(std::span<const float> data, std::span<const float> noise, float sigma, std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = (1.0F - sigma) * data[i] + sigma * noise[i];
}

void velocity_target(std::span<const float> data, std::span<const float> noise, std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = noise[i] - data[i];
}

}  // namespace squareq
