// How a step's update depends on where the run is: learning rate, clipping, average, and what is too odd to use.
#pragma once

#include <cstdint>
#include <string>

#include "engine/config.h"

namespace squareq {

// Learning rate of step `step` (from 1): linear warm-up to the peak, then the schedule's course, which ends at
// lr_end * peak after the last step.
double learning_rate(const TrainingConfig& config, std::int64_t step);

// The share of the gradient that is kept so that its norm is at most max_norm (0: no limit).
double clip_factor(double norm, double max_norm);

// Weight of the adapters in their running average at update `update` (from 1): 1 - min(decay, (1 + n) / (10 + n)).
double average_weight(double decay, std::int64_t update);

// What the guard against bad steps remembers of a run.
struct GuardMemory {
  std::int64_t updates = 0;  // that the mean has seen
  double mean_norm = 0.0;    // running mean of their gradient norms
};

// Why a step of this loss and gradient norm is not to be used; empty if it is.
std::string reason_to_skip(const TrainingConfig& config, const GuardMemory& guard, double loss, double norm);

// Takes the norm of a step that was used into account.
void remember(GuardMemory& guard, double norm);

}  // namespace squareq
