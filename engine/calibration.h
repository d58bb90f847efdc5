// What a device can do, measured once and kept.
#pragma once

#include <string>

#include "engine/memory_plan.h"

namespace squareq {

// measure_rates, or what it found before for this program, device, slab and run: kept in `folder`, one small file for
// each. A file that cannot be read is measured and written again.
DeviceRates calibrated_rates(Device& device, const Slab& slab, const FluxRun& run, const std::string& folder);

}  // namespace squareq
