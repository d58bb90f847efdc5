// What a training run takes of the device's memory, and how it is best spent: which weights stay on the device, which
// stream, and which blocks keep their activations instead of computing them again.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "engine/flux_engine.h"

namespace squareq {

// What a device can do; measured, or projected from a card's data sheet.
struct DeviceRates {
  std::string name;
  bool projected = false;
  std::size_t memory = 0;   // bytes of the device
  std::size_t context = 0;  // of these, what the driver takes for this process
  double forward = 0.0;     // floating-point operations a second of whole blocks
  double backward = 0.0;
  double copies = 0.0;      // bytes a second from host to device
  std::size_t scratch = 0;  // bytes of the operations
};

// Runs the first blocks of the network and a copy. The engine that comes after it finds the kernels loaded, so that
// `context` is all that the driver will take.
DeviceRates measure_rates(Device& device, const Slab& slab, const FluxRun& run);

// "rtx3090", "rtx3080-10gb", ... ConfigError lists the names if there is no such card.
DeviceRates card_rates(const std::string& name);

// Sizes of a run, from the layouts that the engine carves.
struct RunSizes {
  struct StageSize {
    std::string id;
    std::size_t weights = 0;
    bool recomputable = false;
    bool weights_in_backward = false;
    StageWork work;                           // of the largest sequence
    std::vector<std::size_t> saved, lasting;  // by sequence
  };
  std::size_t adapters = 0;         // with gradients and moments
  std::vector<StageSize> stages;    // in order
  std::vector<std::size_t> shared;  // inputs, residual stream and so on, by sequence
};
RunSizes measure_run(const Slab& slab, const FluxRun& run, DType activations);

struct MemoryPlan {
  Residency residency;
  std::set<std::string> kept;
  std::vector<std::pair<std::string, std::size_t>> purposes;  // bytes; their sum is what the driver will report
  std::size_t budget = 0;
  double seconds = 0.0;  // predicted, of a step
  DeviceRates rates;

  std::size_t total() const;
  FluxRun apply(FluxRun run) const;
};

// The plan with the least predicted time among those within `budget` bytes, context included. Throws ConfigError saying
// what would fit if none does.
MemoryPlan plan_memory(const Slab& slab, const FluxRun& run, const RunSizes& sizes, const DeviceRates& rates,
                       std::size_t budget);

// The same for this device, with rates measured now. `budget_gib`: 0 for all memory that is free. ConfigError if that
// is more than is free.
MemoryPlan plan_for(Device& device, const Slab& slab, const FluxRun& run, double budget_gib);

// A table and a bar.
std::string plan_text(const MemoryPlan& plan);

}  // namespace squareq
