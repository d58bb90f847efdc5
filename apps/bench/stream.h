// How well weights stream: bytes a second by host path, how much of that hides behind computation, and where it does
// not.
#pragma once

#include "apps/bench/speed.h"
#include "engine/slab_source.h"

namespace squareq::bench {

struct StreamOptions {
  std::vector<HostPath> paths;  // empty: all
  std::size_t slots = 6;
  std::size_t readers = 0;
  bool resident = true;  // also measure computation alone, with all weights on the device
};

// Training steps with all weights streamed. Adapters after the steps are compared bit for bit with those of the other
// runs; 1 is returned if they differ.
int run_stream(const SpeedOptions& speed, const StreamOptions& options);

}  // namespace squareq::bench
