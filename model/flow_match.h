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

enum class TimestepSampling { kUniform, kSigmoid, kLogitNormal, kShift, kFluxShift };

struct TimestepSettings {
  TimestepSampling kind = TimestepSampling::kFluxShift;
  double sigmoid_scale = 1.0;                // kSigmoid, kShift, kFluxShift: sigma = sigmoid(scale * n)
  double logit_mean = 0.0, logit_std = 1.0;  // kLogitNormal: sigma = sigmoid(mean + std * n)
  double shift = 3.0;                        // kShift
  ScheduleShift schedule;                    // kFluxShift: its base and max shift
};

// One training noise level in (0, 1).
double sample_sigma(Random& random, const TimestepSettings& settings, std::int64_t image_tokens);

// steps + 1 falling noise levels from 1 to 0 for Euler sampling.
std::vector<double> sigma_schedule(std::int64_t steps, const ScheduleShift& shift, std::int64_t image_tokens);

// out = (1 - sigma) * data + sigma * noise; target = noise - data.
void mix_noise(std::span<const float> data, std::span<const float> noise, float sigma, std::span<float> out);
void velocity_target(std::span<const float> data, std::span<const float> noise, std::span<float> out);

}  // namespace squareq
