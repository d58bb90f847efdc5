// A whole run: steps, logs, validation, previews, saved files, and going on after an interruption.
#pragma once

#include <atomic>
#include <chrono>
#include <ctime>
#include <memory>
#include <optional>
#include <string>

#include "engine/memory_plan.h"
#include "engine/metrics.h"
#include "engine/previews.h"
#include "engine/train_state.h"
#include "engine/trainer.h"

namespace squareq {

struct RunInputs {
  TrainingSet data;
  TrainingSet validation;              // without samples: none
  std::unique_ptr<Previews> previews;  // or null
  ScheduleShift shift;
  std::optional<MemoryPlan> plan;  // none: all is where it needs no plan
};

// The run of the transformer that a configuration describes: the shapes of training have a backward, those of
// validation and previews follow, and previews are decoded where activations are. Without a plan.
FluxRun training_run(const TrainConfig& config, const FluxShape& shape, const RunInputs& inputs);

class TrainingRun {
 public:
  // Sets the engine up, and takes up the state that config.resume asks for. Throws ConfigError if it belongs to a run
  // that trains something else.
  TrainingRun(Device& device, const Slab& slab, const TrainConfig& config, RunInputs inputs);

  // Steps until the end or until `stop` becomes true; the step under way is then finished, and state and LoRA saved.
  // Returns the number of steps done. Where a step fails, the state before it is saved and the error passed on. Throws
  // NumericError, with a saved state, after too many skipped steps in a row.
  //
  // The state of a step is saved before what is due at that step (validation, previews) is done, and a state tells
  // whether it was: so every row is logged once, wherever a run is interrupted.
  std::int64_t run(const std::atomic<bool>& stop);

  Trainer& trainer() { return trainer_; }

 private:
  void take_up(const StateFile& file);
  void check_same_run(const TrainState& state, const std::string& path) const;

  void steps(const std::atomic<bool>& stop);
  void step();
  void evaluate(const std::atomic<bool>& stop);
  void save_state();
  void save_state_after_error();
  void remove_old_states() const;
  void save_lora(const std::string& name);
  void finish();
  std::string output(const std::string& name) const;
  std::string lora_name(std::int64_t step) const;  // of a file saved on the way

  Device& device_;
  const TrainConfig& config_;
  RunInputs inputs_;
  std::string model_;                 // identity of the slab
  std::optional<StateFile> resumed_;  // until it is taken up; before the trainer, whose kernels it decides
  Trainer trainer_;
  std::optional<Metrics> metrics_;
  using Clock = std::chrono::steady_clock;
  std::time_t started_ = 0;
  Clock::time_point start_;
  std::int64_t first_step_ = 0;  // steps done when this process took over
  double seconds_before_ = 0.0;  // of training by then
  bool logging_ = false;         // records are being written
};

}  // namespace squareq
