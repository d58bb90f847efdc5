// The smallest transformer with every kind of stage.
#pragma once

#include "kernels/base/shapes.h"

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

}  // namespace squareq::test
