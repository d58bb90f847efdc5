// What the attention kernels ask of a view of heads.
#pragma once

#include <cstdint>

#include "kernels/base/view.h"

namespace squareq::cuda {

// Bfloat16, and every head of every row starts at a multiple of 16 bytes.
inline bool has_aligned_heads(const ConstView& v, std::int64_t heads) {
  return v.dtype == DType::BF16 && v.cols / heads % 8 == 0 && v.row_stride % 8 == 0 &&
         (v.batch == 1 || v.batch_stride % 8 == 0) && reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0;
}

}  // namespace squareq::cuda
