// The FLUX transformer with adapters, set up for some batch shapes: memory measured, allocated once and carved, stages
// ready to run.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/arena.h"
#include "engine/phase.h"
#include "engine/runner.h"
#include "io/slab.h"
#include "kernels/device.h"
#include "model/flux/transformer.h"

namespace squareq {

struct FluxRun {
  // A shape of batches that have no backward.
  struct ForwardOnly {
    PhaseName phase;  // what it is for
    Sequence sequence;
  };
  // Other work, for which the place of the activations is used while the network does not run.
  struct Guest {
    PhaseName phase;
    ArenaWork work;
  };

  std::int64_t batch = 1;
  std::vector<Sequence> sequences;        // one for every shape that a batch may have
  std::vector<ForwardOnly> forward_only;  // their numbers follow those of `sequences`
  std::vector<Guest> guests;
  flux::Wanted wanted;
  Keep keep = Keep::kNothing;
  KeptStages kept;
  Residency residency;
  std::vector<LoraTarget> lora;
  LoraMemory lora_memory;
  // Of a shorter network, the first blocks of the slab's (for measurements); 0: all.
  std::int64_t blocks_of_each_kind = 0;
};

// What a loss reads beside the prediction.
struct LossInputs {
  View target;   // as state.prediction
  View weights;  // [B, T, 1] F32
};

// The adapters of a run, without memory, for a backend with this type of activations.
LoraSet adapters_of(const FluxRun& run, DType activations);
// The state of sequence `index` of a run, forward-only ones included, without memory.
flux::State flux_state(const Slab& slab, const FluxRun& run, std::size_t index, const LoraSet& lora, DType activations);
// Carves what is not of one stage alone.
void flux_layout(Carver& carver, flux::State& state, LossInputs& loss);

class FluxEngine {
 public:
  // What the arena of an engine for this run takes. Nothing is allocated.
  static ArenaBytes measure(Device& device, const Slab& slab, const FluxRun& run);

  // Sequence 0 is selected.
  FluxEngine(Device& device, const Slab& slab, const FluxRun& run);
  FluxEngine(const FluxEngine&) = delete;
  FluxEngine& operator=(const FluxEngine&) = delete;

  // Batches have the shape of this sequence from here on. Inputs, activations and outputs of the last one are lost;
  // weights, adapters, their gradients and moments stay where they are.
  void select(std::size_t sequence);

  Device& device() { return device_; }
  flux::State& state() { return shape().state; }  // of the selected sequence
  const View& target() { return shape().loss.target; }
  const View& loss_weights() { return shape().loss.weights; }
  LoraSet& lora() { return lora_; }

  // One sample's inputs; sizes as in flux::State without the batch axis.
  struct Sample {
    std::span<const float> img, txt, y;
    double sigma = 0.0;
    double guidance = 1.0;
  };
  void set_sample(std::int64_t index, const Sample& sample);

  // Fills state().prediction, with the adapters as they are now.
  void forward(const Runner::Observer& observer = {}) {
    arena_.use();
    device_.ops().stack_adapters(lora_.branches());
    shape().runner->forward(observer);
  }
  // From state().dprediction, with the adapters as they were in forward; adapter gradients accumulate.
  void backward(const Runner::Observer& observer = {}) { shape().runner->backward(observer); }

  std::vector<float> prediction();
  void zero_gradients();
  void initialise_lora(LoraInit init, std::uint64_t seed);

  // Runs the stages of the selected sequence.
  Runner& runner() { return *shape().runner; }

  const SlabStore& weights() const { return store_; }

  const Arena& arena() const { return arena_; }

  // Bytes of the one allocation by purpose.
  const std::vector<std::pair<std::string, std::size_t>>& memory_plan() const { return plan_; }

 private:
  struct WithoutMemory {};
  FluxEngine(Device& device, const Slab& slab, const FluxRun& run, WithoutMemory);

  // What belongs to one sequence.
  struct Shape {
    flux::State state;
    LossInputs loss;
    std::unique_ptr<Runner> runner;
    std::vector<float> cosine, sine;  // rotary table, uploaded when the sequence is selected
  };

  Shape& shape() { return shapes_[selected_]; }
  ArenaWork work();
  void layout(Carver& carver);
  void layout(Carver& carver, Shape& shape);
  void rehearse(Ops& ops);

  Device& device_;
  Arena arena_;  // outlives the store, which copies into it
  SlabStore store_;
  LoraSet lora_;
  Keep keep_;
  KeptStages kept_;
  std::size_t with_backward_ = 0;  // of shapes_, the first ones
  std::vector<FluxRun::Guest> guests_;
  std::vector<Shape> shapes_;  // stages refer into it, so its size stays
  std::size_t selected_ = 0;
  std::vector<std::pair<std::string, std::size_t>> plan_;
};

}  // namespace squareq
