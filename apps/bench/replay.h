// A recorded run of a whole pipeline, done again by our programs' parts.
#pragma once

#include <optional>

#include <string>
#include <vector>

#include "apps/bench/comparison.h"
#include "kernels/device.h"

namespace squareq::bench {

struct ReplayOptions {
  std::string model_dir;  // diffusers folder
  std::string io;         // recorded tensors; prompts and steps in its metadata
  std::optional<double> tolerance;
  std::string device = "auto";
  DeviceOptions compute;
  int threads = 0;
};

// Token ids (which must be equal), text states, latents at every recorded step and the picture, from float weights;
// and, where recorded, moments, latents, velocity and loss of a training case.
std::vector<Comparison> run_replay(const ReplayOptions& options);

}  // namespace squareq::bench
