// Weights of a network read from a checkpoint, as float32 in memory that the device reads.
#pragma once

#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "kernels/device.h"
#include "model/stage.h"

namespace squareq {

// Reads what it is shown and binds it; what it binds lives as long as this object. Throws FormatError, naming file and
// tensor, if a tensor is missing, has another shape, or holds a value that is not finite.
class LoadedWeights : public WeightVisitor {
 public:
  LoadedWeights(const Checkpoint& checkpoint, Device& device) : checkpoint_(checkpoint), device_(device) {}

  void linear(const std::string& name, Weight& slot, std::int64_t out, std::int64_t in, bool bias) override;
  // Trailing axes of the stored tensor count as columns: a convolution [out, in, k, k] is [out, in * k * k].
  void tensor(const std::string& name, ConstView& slot, std::int64_t rows, std::int64_t cols) override;

 private:
  ConstView load(const std::string& name, std::int64_t rows, std::int64_t cols);

  const Checkpoint& checkpoint_;
  Device& device_;
  std::vector<Buffer> memory_;
};

}  // namespace squareq
