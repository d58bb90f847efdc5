// The FLUX transformer with adapters, set up for one batch shape: memory measured, allocated once and carved, stages
// ready to run.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/arena.h"
#include "engine/runner.h"
#include "io/slab.h"
#include "kernels/device.h"
#include "model/flux/transformer.h"

namespace squareq {

struct FluxRun {
  std::int64_t batch = 1;
  Sequence sequence;
  flux::Wanted wanted;
  Keep keep = Keep::kNothing;
  std::vector<LoraTarget> lora;
};

class FluxEngine {
 public:
  FluxEngine(Device& device, const Slab& slab, FluxRun run);
  FluxEngine(const FluxEngine&) = delete;
  FluxEngine& operator=(const FluxEngine&) = delete;

  Device& device() { return device_; }
  flux::State& state() { return state_; }
  LoraSet& lora() { return lora_; }

  // One sample's inputs; sizes as in flux::State without the batch axis.
  struct Sample {
    std::span<const float> img, txt, y;
    double sigma = 0.0;
    double guidance = 1.0;
  };
  void set_sample(std::int64_t index, const Sample& sample);

  // Fills state().prediction.
  void forward(const Runner::Observer& observer = {}) {
    arena_.use();
    runner_->forward(observer);
  }
  // From state().dprediction; adapter gradients accumulate.
  void backward(const Runner::Observer& observer = {}) { runner_->backward(observer); }

  std::vector<float> prediction();
  void zero_gradients();
  void initialise_lora(LoraInit init, std::uint64_t seed);

  // Bytes of the one allocation by purpose.
  const std::vector<std::pair<std::string, std::size_t>>& memory_plan() const { return plan_; }

 private:
  void layout(Carver& carver);
  void rehearse(Ops& ops);

  Device& device_;
  SlabStore store_;
  flux::State state_;
  LoraSet lora_;
  Keep keep_;
  std::unique_ptr<Runner> runner_;
  Arena arena_;
  std::vector<std::pair<std::string, std::size_t>> plan_;
};

}  // namespace squareq
