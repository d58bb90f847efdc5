// Our engine against recorded tensors of the original code.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "apps/bench/comparison.h"
#include "io/safetensors.h"
#include "kernels/device.h"

namespace squareq::bench {

struct ParityOptions {
  std::string model;                // checkpoint
  std::string io;                   // recorded inputs and outputs
  std::string config;               // JSON file that completes the checkpoint's own shape; may be empty
  bool float_only = false;          // skip what needs the INT8 slab
  std::optional<double> tolerance;  // replaces every default limit
  std::string device = "auto";
  DeviceOptions compute;
  int threads = 0;
  bool bf16 = false;  // set by run_parity: the device computes in bfloat16

  double limit(double of_float32) const;
};

// The JSON object in a file; nothing for an empty path. Throws FormatError if it is something else.
std::optional<nlohmann::json> read_config(const std::string& path);

// Which network is meant follows from the names in the IO file. Throws FormatError if they fit none.
std::vector<Comparison> run_parity(ParityOptions options);

std::vector<Comparison> flux_parity(const ParityOptions& options, const SafetensorsFile& io, Device& device);
std::vector<Comparison> vae_parity(const ParityOptions& options, const SafetensorsFile& io, Device& device);
std::vector<Comparison> clip_parity(const ParityOptions& options, const SafetensorsFile& io, Device& device);
std::vector<Comparison> t5_parity(const ParityOptions& options, const SafetensorsFile& io, Device& device);

// Default limits of the relative L2 error. A correct float64 and a correct float32 implementation differ by about
// 2e-5 in outputs, 1e-4 in gradients and 8e-4 after five optimizer steps.
inline constexpr double kOutputLimit = 1e-4;
inline constexpr double kGradientLimit = 1e-3;
inline constexpr double kAdamLimit = 3e-3;
// With bfloat16 activations: of outputs; of gradients, where it implies a cosine of 0.999 (|a - b|^2 = 2 - 2 cos for
// vectors of one length).
inline constexpr double kBf16OutputLimit = 2e-2;
inline constexpr double kBf16GradientLimit = 4.4e-2;
inline constexpr double kInt8GradientLimit = 7.7e-2;  // with INT8 activations: a cosine of 0.997

}  // namespace squareq::bench
