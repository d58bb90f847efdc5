#pragma once

#include <string>

#include "kernels/base/shapes.h"

namespace squareq {

// Prints what a LoRA file holds: as text, one line for every kind of linear or, with `modules`, for every adapter; or
// everything as JSON.
void inspect_lora(const std::string& path, const FluxShape& shape, bool modules, bool json);

}  // namespace squareq
