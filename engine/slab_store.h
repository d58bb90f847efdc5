// Brings the weights of a stage from a slab to the device.
#pragma once

#include <set>
#include <string>

#include "io/slab.h"
#include "model/stage.h"

namespace squareq {

class SlabStore {
 public:
  explicit SlabStore(const Slab& slab) : slab_(slab) {}

  // Binds the weights of the stage. On the CPU they are used where they are mapped. The first time a block is acquired
  // its checksum is verified. Throws FormatError if the block or a tensor is damaged, missing or of another shape.
  void acquire(const Stage& stage);

 private:
  const Slab& slab_;
  std::set<std::string> verified_;
};

}  // namespace squareq
