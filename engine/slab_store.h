// Brings the weights of a stage from a slab to the device.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "io/slab.h"
#include "kernels/device.h"
#include "model/stage.h"

namespace squareq {

class SlabStore {
 public:
  SlabStore(const Slab& slab, Device& device) : slab_(slab), device_(device) {}

  // Carves memory for the blocks of the stages on a device that does not read host memory.
  void layout(Carver& carver, const std::vector<Stage>& stages);

  // Binds the weights of the stage, on the CPU where they are mapped, else in device memory. The first time a block is
  // acquired its checksum is verified and it is uploaded. Throws FormatError if the block or a tensor is damaged,
  // missing or of another shape.
  void acquire(const Stage& stage);
  // Binds views with the shapes of the weights, for a rehearsal.
  void bind_shapes(const Stage& stage) const;

 private:
  const Slab& slab_;
  Device& device_;
  std::set<std::string> loaded_;
  std::map<std::string, View> resident_;  // by block
};

}  // namespace squareq
