// Opens a model for use: its parts and its slabs, built where they are missing.
#pragma once

#include <memory>
#include <string>

#include "engine/config.h"
#include "engine/model_parts.h"
#include "io/slab.h"
#include "kernels/device.h"

namespace squareq {

struct SlabRequest {
  std::string checkpoint;  // a checkpoint, or a slab, which is then used as it is
  std::string slab;        // where the slab is or is to be; empty: in cache_dir, named by the checkpoint's identity
  std::string cache_dir;
  bool t5 = false;
  Codec codec = Codec::kInt8Rows;
  std::optional<std::array<std::int64_t, 3>> axes;
  int threads = 0;
};

// Path of a slab of the checkpoint, built first, with progress on the console, if there is none.
std::string ensure_slab(const SlabRequest& request);

// The slab of the transformer that the configuration names.
Slab open_slab(const TrainConfig& config, const ModelParts& parts);

// kAuto: the GPU where this build and this machine have one, else the CPU.
std::unique_ptr<Device> open_device(TrainConfig::Device device, std::int64_t threads, const DeviceOptions& options);
// "auto", "cpu" or "cuda", as the programs' --device has it.
std::unique_ptr<Device> open_device(const std::string& name, std::int64_t threads, const DeviceOptions& options);

// The model's own parts, with those that the configuration names in their places.
ModelParts configured_parts(const TrainConfig& config);

}  // namespace squareq
