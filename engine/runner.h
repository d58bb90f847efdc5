// Runs a list of stages: forward up, backward down, with the memory that they save kept or shared.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "engine/slab_store.h"
#include "model/stage.h"

namespace squareq {

enum class Keep {
  kNothing,     // forward only: all stages share one region
  kCheckpoint,  // recomputable stages share one region and are run again before their backward
  kAll,         // every stage keeps what it saved
};

class Runner {
 public:
  Runner(Device& device, SlabStore& store, std::vector<Stage> stages, Keep keep);

  // Carves what the stages save (see Carver).
  void layout(Carver& carver);
  // Calls every operation of forward and backward, for a rehearsal (see Arena).
  void rehearse();

  // Called after every stage with the seconds that it took (in backward including a recomputation).
  using Observer = std::function<void(const Stage& stage, double seconds)>;

  void forward(const Observer& observer = {});
  void backward(const Observer& observer = {});

  const std::vector<Stage>& stages() const { return stages_; }

 private:
  bool shares(const Stage& stage) const;
  // The stages of one pass and of the one that comes after it, in order.
  void expect(bool backward);

  Device& device_;
  SlabStore& store_;
  std::vector<Stage> stages_;
  Keep keep_;
};

}  // namespace squareq
