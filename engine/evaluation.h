// Loss that can be compared between adapters and between steps.
#pragma once

#include <cstdint>

#include "engine/flow_batch.h"

namespace squareq {

// Mean squared error of the velocity over every sample at `draws` quantiles of sigmoid(normal), with one fixed noise
// for each of these. Bucket b of the data is sequence first_sequence + b of the engine.
double fixed_draw_loss(FluxEngine& engine, const TrainingSet& data, std::size_t first_sequence, std::int64_t draws,
                       double guidance);

}  // namespace squareq
