// One allocation on a device: everything that a layout asks for, and the scratch memory of the operations that will
// run.
#pragma once

#include <cstddef>
#include <functional>

#include "kernels/base/carver.h"
#include "kernels/device.h"

namespace squareq {

class Arena {
 public:
  Arena() = default;

  // `layout` is run three times (see Carver): to measure; at addresses without memory, for the rehearsal of `work`,
  // which calls every operation that will be called later; and with memory. Throws ConfigError if the device has not
  // enough memory left.
  Arena(Device& device, const std::function<void(Carver&)>& layout, const std::function<void(Ops&)>& work);

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
