// Weights of a network read from a checkpoint, as float32 in memory of a device that a layout carves.
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "io/checkpoint.h"
#include "io/random_access_file.h"
#include "kernels/base/carver.h"
#include "kernels/device.h"
#include "model/stage.h"

namespace squareq {

class LoadedWeights {
 public:
  // `network` shows the weights to a visitor. Trailing axes of a stored tensor count as columns: a convolution
  // [out, in, k, k] is [out, in * k * k]. The checkpoint outlives this object.
  LoadedWeights(const Checkpoint& checkpoint, std::function<void(WeightVisitor&)> network);

  // Carves memory for the weights and binds them there. Throws FormatError, naming file and tensor, if one is missing
  // or has another shape.
  void layout(Carver& carver);

  // Reads the weights into the memory of the last layout. Throws FormatError if a value is not finite, and FileError if
  // a file changed since it was opened.
  void upload(Device& device) const;

 private:
  const Checkpoint& checkpoint_;
  std::function<void(WeightVisitor&)> network_;
  std::deque<RandomAccessFile> files_;  // of the checkpoint
  std::vector<std::pair<std::string, View>> bound_;
};

}  // namespace squareq
