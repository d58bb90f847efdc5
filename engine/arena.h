// One allocation on a device: everything that a layout asks for, and the scratch memory of the operations that will
// run.
#pragma once

#include <cstddef>
#include <functional>

#include "kernels/base/carver.h"
#include "kernels/device.h"

namespace squareq {

// What is done in an arena.
struct ArenaWork {
  std::function<void(Carver&)> layout;  // run several times: see Carver
  std::function<void(Ops&)> rehearse;   // calls every operation that will be called later
};

struct ArenaBytes {
  std::size_t layout = 0;
  std::size_t scratch = 0;
};

// What an arena for `work` takes. Nothing is allocated: the work is rehearsed at addresses without memory.
ArenaBytes measure_arena(Device& device, const ArenaWork& work);

class Arena {
 public:
  Arena() = default;

  // Throws ConfigError if the device has not enough memory left.
  Arena(Device& device, const ArenaWork& work);

  // Makes this arena's scratch memory that of the device's operations. Before the first operation, and again after
  // another arena was used.
  void use() const;

  std::size_t bytes() const { return bytes_; }
  std::size_t scratch_bytes() const { return scratch_.bytes(); }

 private:
  Device* device_ = nullptr;
  std::size_t bytes_ = 0;
  Buffer memory_;
  View scratch_;
};

}  // namespace squareq
