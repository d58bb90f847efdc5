// Training steps: batches of encoded pictures in, better adapters out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/config.h"
#include "engine/flow_batch.h"
#include "engine/schedule.h"
#include "model/flow_match.h"

namespace squareq {

// Where a run is. Together with the adapters, their moments and average it decides all that follows.
struct TrainProgress {
  std::int64_t step = 0;        // steps done, skipped ones included
  std::int64_t updates = 0;     // steps that changed the adapters: what AdamW and the average count
  std::int64_t batches = 0;     // taken from the data: the next one has this number
  std::int64_t skipped = 0;     // steps skipped in a row
  std::int64_t evaluated = -1;  // steps that were done at the last validation and previews
  GuardMemory guard;
  double seconds = 0.0;        // of training
  std::vector<double> losses;  // of every step
};

struct StepResult {
  double loss = 0.0;       // weighted mean over the samples of the step
  double grad_norm = 0.0;  // before clipping
  double sigma_mean = 0.0;
  double learning_rate = 0.0;
  std::string skipped;  // why the adapters were left as they were; empty: they were updated
};

// The run of the transformer that a configuration describes, for batches of these shapes.
FluxRun training_run(const TrainConfig& config, const FluxShape& shape, std::vector<Sequence> sequences);

class Trainer {
 public:
  // Builds the engine for `run`, whose sequences are those of the buckets, and initialises the adapters.
  Trainer(Device& device, const Slab& slab, const TrainConfig& config, TrainingSet data, const ScheduleShift& shift,
          const FluxRun& run);

  FluxEngine& engine() { return engine_; }
  const TrainingSet& data() const { return data_; }
  TrainProgress& progress() { return progress_; }
  const TrainProgress& progress() const { return progress_; }

  // The next step. Every draw is a function of the seed and of the step's number, so a trainer with the adapters and
  // the progress of another one does what that would have done. A step with a loss or gradient that is not finite, or
  // with a spike, leaves the adapters alone (see reason_to_skip).
  StepResult step();

  // While it lives, the engine computes without rank dropout and with the averaged adapters, if there is an average.
  class Evaluation {
   public:
    explicit Evaluation(Trainer& trainer);
    ~Evaluation();
    Evaluation(const Evaluation&) = delete;
    Evaluation& operator=(const Evaluation&) = delete;

   private:
    FluxEngine& engine_;
  };

 private:
  void gradients(StepResult& result);
  double set_sample(std::int64_t slot, std::int64_t global, const EncodedExample& example);
  void drop_ranks(std::int64_t first_sample);
  void update(const StepResult& result);
  RandomKey key(Purpose purpose, std::int64_t global) const;

  const TrainConfig& config_;
  TrainingSet data_;
  TimestepSettings timesteps_;
  FluxEngine engine_;
  FlowBatch batch_;
  BatchSource batches_;
  TrainProgress progress_;
  std::vector<float> noise_;
};

}  // namespace squareq
