// The training loop: batches of encoded pictures in, adapters out.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/config.h"
#include "engine/flow_batch.h"
#include "engine/metrics.h"
#include "engine/training_set.h"
#include "model/flow_match.h"

namespace squareq {

// Learning rate of optimizer step `step` (from 1): linear warm-up, then constant, linear or cosine decay to 0.
double learning_rate(const TrainingConfig& config, std::int64_t step);

// The share of the gradient that is kept so that its norm is at most max_norm (0: no limit).
double clip_factor(double norm, double max_norm);

class Trainer {
 public:
  // Builds the engine, prints the memory plan and initialises the adapters.
  Trainer(Device& device, const Slab& slab, const TrainConfig& config, TrainingSet data, const ScheduleShift& shift);

  FluxEngine& engine() { return engine_; }

  struct StepResult {
    double loss = 0.0;       // mean over the samples of the step
    double grad_norm = 0.0;  // before clipping
    double sigma_mean = 0.0;
    double learning_rate = 0.0;
  };
  // Optimizer step number `step`, counted from 1. Every draw is a function of (seed, step), so steps may be run from
  // any point. Throws NumericError if loss or gradient is not finite; the adapters are then as before the step.
  StepResult step(std::int64_t step);

  // All steps with logging and saving; `save` is called with the number of steps done, at intervals and at the end.
  // Ends early, saving, when `stop` becomes true. Returns the number of steps done.
  std::int64_t run(Metrics& metrics, const std::atomic<bool>& stop,
                   const std::function<void(std::int64_t steps, bool last)>& save);

 private:
  const TrainConfig& config_;
  TrainingSet data_;
  TimestepSettings timesteps_;
  FluxEngine engine_;
  FlowBatch batch_;
  BatchSource batches_;
};

// Loss that can be compared between adapters: over every picture at `draws` quantiles of sigmoid(normal), with one
// fixed noise for each of these.
class FixedDrawLoss {
 public:
  // `lora`: adapters of the engine, whose values the caller sets.
  FixedDrawLoss(Device& device, const Slab& slab, const TrainingConfig& config, const TrainingSet& data,
                std::vector<LoraTarget> lora);

  FluxEngine& engine() { return engine_; }
  double operator()(std::int64_t draws);

 private:
  // Of draws that have this bucket's shape, numbered sample x draws + draw.
  double sum_over(std::size_t bucket, const std::vector<std::int64_t>& indices, std::int64_t draws);

  const TrainingConfig& config_;
  const TrainingSet& data_;
  FluxEngine engine_;
  FlowBatch batch_;
};

}  // namespace squareq
