// Tables of device time by family of kernels.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "kernels/profile.h"

namespace squareq::bench {

// A line for each family that took time, with its share of all and the rate of the work that it has to do at least.
void print_families(const KernelTimes& times);
nlohmann::json families_json(const KernelTimes& times);

}  // namespace squareq::bench
