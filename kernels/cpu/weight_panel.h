// Expansion of stored weights to float32.
#pragma once

#include "kernels/base/view.h"
#include "kernels/cpu/cpu_ops.h"

namespace squareq {

// Rows [row, row + rows) and columns [col, col + cols) of the weight as floats: in place for F32 values, else expanded
// into `memory`. For kInt8Rows each row is multiplied by its scale. Throws std::logic_error for other value types.
ConstMatrix weight_panel(const Weight& weight, std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols,
                         Scratch& memory);

}  // namespace squareq
