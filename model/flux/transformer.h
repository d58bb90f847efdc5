// The FLUX.1 transformer as a list of stages: embedders, double blocks and single blocks with the modulation of each
// before it, final layer. Stage ids are the block ids of the slab.
#pragma once

#include <vector>

#include "model/flux/state.h"
#include "model/stage.h"

namespace squareq::flux {

// Sets state.vec_gradient from the adapters. Before layout(carver, state).
void prepare(State& state, const LoraSet& lora);

// The stages share `state` and the memory of `lora`, both laid out with memory and outliving the stages; the result
// is for this batch and sequence only.
std::vector<Stage> stages(State& state, const LoraSet& lora);

// Every linear of the transformer that can carry an adapter, with its shape, in execution order.
struct LinearShape {
  std::string name;
  std::int64_t out = 0;
  std::int64_t in = 0;
};
std::vector<LinearShape> linears(const FluxShape& shape);

}  // namespace squareq::flux
