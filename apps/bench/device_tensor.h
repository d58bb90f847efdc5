// A contiguous tensor on a device with its memory, and reading views back.
#pragma once

#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/device.h"

namespace squareq::bench {

struct DeviceTensor {
  DeviceTensor(Device& device, std::int64_t batch, std::int64_t rows, std::int64_t cols)
      : memory(device.allocate(static_cast<std::size_t>(batch * rows * cols) * sizeof(float))),
        view(memory.get(), DType::F32, batch, rows, cols) {}

  Buffer memory;
  View view;
};

// The values of any view, in order.
inline std::vector<float> values_of(Device& device, const ConstView& view) {
  std::vector<float> out(static_cast<std::size_t>(view.count()));
  std::vector<std::byte> row(static_cast<std::size_t>(view.cols) * size_of(view.dtype));
  float* to = out.data();
  for (std::int64_t b = 0; b < view.batch; ++b) {
    for (std::int64_t r = 0; r < view.rows; ++r, to += view.cols) {
      device.download(view.batch_slice(b, 1).row_slice(r, 1), row.data());
      to_f32(row.data(), view.dtype, to, view.cols);
    }
  }
  return out;
}

}  // namespace squareq::bench
