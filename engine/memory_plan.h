// What a run takes of the device's memory in each of its phases, and how it is best spent: which weights stay on the
// device, which of these have prepared copies, which stream, and which blocks keep their activations instead of
// computing them again.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "engine/flux_engine.h"
#include "engine/phase.h"
#include "engine/run_sizes.h"

namespace squareq {

// Floating-point operations a second of whole blocks.
struct BlockRates {
  double forward = 0.0;
  double backward = 0.0;
};

// What a device can do; measured, or projected from a card's data sheet.
struct DeviceRates {
  std::string name;
  bool projected = false;
  std::size_t memory = 0;   // bytes of the device
  std::size_t context = 0;  // of these, what the driver takes for this process
  BlockRates blocks;        // with weights as they are stored
  BlockRates prepared;      // with copies of them as products read them
  double copies = 0.0;      // bytes a second from host to device
  std::size_t scratch = 0;  // bytes of the operations
};

// Bytes that the driver has taken for this process, with a reserve for what it takes later for a run on this slab. 0 on
// a device that reads host memory.
std::size_t driver_memory(const Device& device, const Slab& slab);

// Runs the first blocks of the network, again with prepared weights where the backend has such a form, and a copy. The
// engine that comes after it finds the kernels loaded, so that `context` is all that the driver will take.
DeviceRates measure_rates(Device& device, const Slab& slab, const FluxRun& run);

// "rtx3090", "rtx3080-10gb", ... ConfigError lists the names if there is no such card.
DeviceRates card_rates(const std::string& name);

// A phase before training, with an arena of its own that is gone afterwards.
struct EncoderSizes {
  PhaseName phase;
  std::size_t weights = 0;     // that have to stay
  const Slab* slab = nullptr;  // whose weights may stream; null: there are none
  std::size_t activations = 0;
  std::size_t scratch = 0;
};

struct EncoderPlan {
  Phase phase;
  Residency residency;
};

// As many weights stay as fit into the budget, context included, evenly spread. Where not even the least fits, that is
// the plan.
EncoderPlan plan_encoder(const EncoderSizes& sizes, std::size_t context, std::size_t budget);

struct MemoryPlan {
  Residency residency;
  KeptStages kept;
  std::map<std::string, Residency> encoders;  // by phase, where weights may stream
  std::vector<Phase> phases;                  // in order
  std::size_t budget = 0;
  double seconds = 0.0;  // predicted, of a step
  DeviceRates rates;
  std::string summary;  // of what was chosen, for people

  std::size_t total() const;  // of the largest phase
  FluxRun apply(FluxRun run) const;
};

// The plan with the least predicted time of a step among those within `budget` bytes, context included. Throws
// ConfigError naming the phase that does not fit and saying what would if there is none.
MemoryPlan plan_memory(const Slab& slab, const FluxRun& run, const RunSizes& sizes, const DeviceRates& rates,
                       std::size_t budget, const std::vector<EncoderSizes>& encoders = {});

// What a run may be told to do with its weights and activations.
struct PlanChoice {
  KeptStages kept;
  std::set<std::string> streamed;  // stages
  std::set<std::string> prepared;  // blocks; those that stream are not
  std::size_t slots = 0;
};
// The plan of training with this choice, which may exceed the budget; `seconds` is what is predicted for it.
MemoryPlan plan_of(const Slab& slab, const FluxRun& run, const RunSizes& sizes, const DeviceRates& rates,
                   std::size_t budget, const PlanChoice& choice);

// What may be used of the device, in bytes, context included. `budget_gib`: 0 for all that is free. ConfigError if it
// is more than that.
std::size_t budget_on(const Device& device, double budget_gib);

// Is there as much memory free as an engine for this run takes?
bool fits(Device& device, const Slab& slab, const FluxRun& run);

// The best plan for this device within budget_on().
MemoryPlan plan_for(Device& device, const Slab& slab, const FluxRun& run, const DeviceRates& rates, double budget_gib,
                    const std::vector<EncoderSizes>& encoders = {});

// A table of the phases, with a bar for each.
std::string plan_text(const MemoryPlan& plan);

}  // namespace squareq
