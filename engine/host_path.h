// How weights that stream come from the slab to the device.
#pragma once

#include <cstdint>

namespace squareq {

enum class HostPath : std::uint8_t {
  kAuto,        // the first of these that works here; of kDirect, what fits goes through the page cache
  kRegistered,  // the device copies from the mapped file, which is registered with the driver
  kRing,        // reader threads fill a ring of pinned memory from the page cache
  kDirect,      // the same past the page cache, for slabs larger than the memory of the machine
};

}  // namespace squareq
