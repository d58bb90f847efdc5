// How much memory each part of a training run takes, as the engine will carve it.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "engine/flux_engine.h"
#include "engine/phase.h"

namespace squareq {

// In bytes, from the layouts that the engine carves.
struct RunSizes {
  struct StageSize {
    std::string id;
    std::size_t weights = 0;
    std::size_t prepared = 0;  // copies of a block's weights as products read them; 0 where they read what is stored
    bool recomputable = false;
    bool weights_in_backward = false;
    StageWork work;  // of the largest sequence
    // By sequence; `attention`: what lasts more if the results of attention do.
    std::vector<std::size_t> saved, lasting, attention;
  };
  // What uses the place of the activations at other times.
  struct Other {
    PhaseName phase;
    std::size_t bytes = 0;
  };
  std::size_t adapters = 0;         // with gradients and moments
  std::vector<StageSize> stages;    // in order
  std::vector<std::size_t> shared;  // inputs, residual stream and so on, by sequence
  std::vector<Other> others;        // the largest of each phase, in order
  std::size_t scratch = 0;
};
// Without scratch and copies of weights; and with them, for this device.
RunSizes measure_run(const Slab& slab, const FluxRun& run, DType activations);
RunSizes measure_run(Device& device, const Slab& slab, const FluxRun& run);

// The run with prepared copies of the weights of all blocks (Residency::prepared), where this device's products read
// another form than what is stored.
FluxRun with_prepared_blocks(Device& device, const Slab& slab, FluxRun run);

}  // namespace squareq
