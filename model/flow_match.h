// Flow matching on noise levels sigma in [0, 1]: x_sigma = (1 - sigma) data + sigma noise, velocity = noise - data
// (Lipman et al., "Flow matching for generative modeling", 2023; Esser et al., "Scaling rectified flow transformers
// for high-resolution image synthesis", 2024).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/random.h"

namespace squareq {

// How a model's scheduler shifts noise levels with resolution (scheduler_config.json; defaults of FLUX.1-dev).
struct ScheduleShift {
  bool dynamic = true;  // false: `constant` is used
  double constant = 1.0;
  double base_shift = 0.5, max_shift = 1.15;
  std::int64_t base_tokens = 256, max_tokens = 4096;

  // mu, linear in the number of image tokens and not clamped.
  double mu(std::int64_t tokens) const;
  // The noise level after the shift; 0 stays 0, 1 stays 1.
  double operator()(double sigma, std::int64_t tokens) const;
};

// s sigma / (1 + (s - 1) sigma).
double constant_shift(double sigma, double s);

// How a training noise level is drawn, with n normal and u uniform in (0, 1).
enum class TimestepSampling : std::uint8_t {
  kUniform,      // sigma = u
  kSigmoid,      // sigma = sigmoid(scale * n)
  kLogitNormal,  // sigma = sigmoid(mean + std * n)
  kShift,        // as kSigmoid, then the constant shift
  kFluxShift,    // as kSigmoid, then the schedule's shift for the number of tokens
  kSigma,        // (1000 - floor(1000 u)) / 1000, then the constant shift
  kMode,         // as kSigma, with 1 - u - mode_scale (cos^2(pi u / 2) - 1 + u) for u (Esser et al., section 3.1)
  kContent,      // sigma = 1 - u^3: much noise, which decides what is in a picture
  kStyle,        // sigma = u^3: little noise, which decides how it is drawn
};

struct TimestepSettings {
  TimestepSampling kind = TimestepSampling::kFluxShift;
  double sigmoid_scale = 1.0;                // kSigmoid, kShift, kFluxShift: sigma = sigmoid(scale * n)
  double logit_mean = 0.0, logit_std = 1.0;  // kLogitNormal: sigma = sigmoid(mean + std * n)
  double shift = 3.0;                        // kShift, kSigma, kMode
  double mode_scale = 1.29;                  // kMode
  ScheduleShift schedule;                    // kFluxShift: its base and max shift
  double sigma_min = 0.0, sigma_max = 1.0;   // what was drawn in (0, 1] is mapped linearly onto this range
};

// How much the loss at a noise level counts.
enum class LossWeighting : std::uint8_t {
  kNone,       // 1
  kSigmaSqrt,  // sigma^-2
  kCosmap,     // 2 / (pi (1 - 2 sigma + 2 sigma^2))
  kBell,       // exp(-2 (sigma - 1/2)^2) less its value at the ends, scaled to a mean of 1
  kBellFlat,   // the same, and from its top down to sigma = 0 that of the top
};
double loss_weight(LossWeighting weighting, double sigma);

// One training noise level in (sigma_min, sigma_max), at most 1.
double sample_sigma(Random& random, const TimestepSettings& settings, std::int64_t image_tokens);

// steps + 1 falling noise levels from 1 to 0 for Euler sampling.
std::vector<double> sigma_schedule(std::int64_t steps, const ScheduleShift& shift, std::int64_t image_tokens);

// noise += strength * z with one normal z for every latent channel, that is for four features of each token (see
// model/latent.h): what shifts whole pictures is then learnt faster.
void offset_noise(std::span<float> noise, std::int64_t features, double strength, Random& random);

// out = (1 - sigma) * data + sigma * noise; target = noise - data.
void mix_noise(std::span<const float> data, std::span<const float> noise, float sigma, std::span<float> out);
void velocity_target(std::span<const float> data, std::span<const float> noise, std::span<float> out);

}  // namespace squareq
