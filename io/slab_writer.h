// Turns a source of float weights into a slab.
#pragma once

#include <cstdint>
#include <string>

#include "io/slab_build.h"
#include "kernels/base/dtype.h"

namespace squareq {

// Weights of a network by canonical tensor name.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // Changes whenever the weights may have changed.
  virtual std::string key() const = 0;
  virtual DType dtype(const std::string& tensor) const = 0;
  // Rows [row_begin, row_begin + rows) of a tensor seen as [first axis, all others]. Called from several threads.
  // Throws FormatError naming file, tensor and row if a value is NaN or infinite.
  virtual void read(const std::string& tensor, std::int64_t row_begin, std::int64_t rows, float* out) const = 0;
};

// See build_slab.
void write_slab(const WeightSource& source, const SlabShape& shape, const std::string& path,
                const SlabOptions& options);

}  // namespace squareq
