// The smallest transformer with every kind of stage.
#pragma once

#include <memory>

#include "io/slab.h"
#include "io/slab_build.h"
#include "kernels/base/shapes.h"
#include "kernels/device.h"
#include "tests/support.h"

namespace squareq::test {

inline FluxShape tiny_shape() {
  return {.hidden = 64,
          .heads = 2,
          .head_dim = 32,
          .axes = {8, 12, 12},
          .double_blocks = 1,
          .single_blocks = 2,
          .mlp_hidden = 256,
          .context_in = 48,
          .vector_in = 24,
          .in_channels = 16,
          .out_channels = 16,
          .guidance = true};
}

// A slab of it, of random weights, and a device.
struct TinySlab {
  TempDir folder;
  std::unique_ptr<Device> device = make_cpu_device(2);
  std::unique_ptr<Slab> slab;

  explicit TinySlab(const FluxShape& shape = tiny_shape()) {
    synthesize_slab(shape, folder.file("tiny.slab"));
    slab = std::make_unique<Slab>(folder.file("tiny.slab"));
  }
};

}  // namespace squareq::test
