// The options of programs that say where and how to compute.
#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <string>

#include "kernels/device.h"

namespace squareq {

inline void add_device_options(CLI::App& app, std::string& device, DeviceOptions& compute) {
  using Kernels = DeviceOptions::Kernels;
  app.add_option("--device", device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  static const std::map<std::string, Kernels> kKernels{
      {"auto", Kernels::kAuto}, {"portable", Kernels::kPortable}, {"cudnn", Kernels::kCudnn}};
  app.add_option_function<std::string>(
         "--attention", [&compute](const std::string& name) { compute.attention = kKernels.at(name); },
         "kernels of attention on a GPU: auto, portable or cudnn")
      ->check(CLI::IsMember({"auto", "portable", "cudnn"}))
      ->default_str("auto");
  app.add_option_function<std::string>(
         "--precision",
         [&compute](const std::string& name) {
           using Precision = DeviceOptions::Precision;
           compute.precision = name == "w8a8" ? Precision::kW8A8 : Precision::kW8A16;
         },
         "products with INT8 weights on a GPU: w8a16 (bfloat16), or w8a8 (activations in INT8 too: faster, less exact)")
      ->check(CLI::IsMember({"w8a16", "w8a8"}))
      ->default_str("w8a16");
  app.add_flag("--deterministic,!--no-deterministic", compute.deterministic,
               "the same bits every time on a GPU, the default; without, attention may be faster");
}

}  // namespace squareq
