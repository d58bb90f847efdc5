#include "apps/bench/stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "apps/bench/measure.h"
#include "apps/bench/training_step.h"
#include "engine/host_memory.h"
#include "engine/pipeline.h"
#include "io/checksum.h"
#include "kernels/base/error.h"

namespace squareq::bench {
namespace {

const std::map<HostPath, const char*> kNames{
    {HostPath::kRegistered, "registered"}, {HostPath::kRing, "ring"}, {HostPath::kDirect, "direct"}};

// Bytes a second of copies from pinned memory, nothing else going on.
double pinned_rate(Device& device) {
  constexpr std::size_t kBytes = std::size_t{128} << 20U;
  constexpr int kCopies = 8;
  Transfers& transfers = device.transfers();
  const Buffer host = transfers.allocate_pinned(kBytes);
  std::fill_n(host.get(), kBytes, std::byte{1});
  const Buffer memory = device.allocate(kBytes);
  const std::unique_ptr<Event> end = transfers.make_event();
  const double seconds = median_seconds(5, [&] {
    for (int i = 0; i < kCopies; ++i) transfers.copy(host.get(), memory.get(), kBytes);
    transfers.record(*end, Stream::kCopy);
    transfers.wait(*end);
  });
  return kCopies * static_cast<double>(kBytes) / seconds;
}

struct Result {
  double step = 0.0;      // seconds
  double transfer = 0.0;  // of the transfers of a step alone
  double bytes = 0.0;     // that a step brings
  std::string adapters;   // checksum after the last step
  std::string timeline;
};

// One character a stage in the order of execution: how long the device waited, from ' ' (under 2 % of the mean stage)
// to '#' (as long as a mean stage computes).
std::string timeline(const std::vector<StageTime>& times) {
  constexpr std::string_view kShades = " .:-=+*%#";
  double mean = 0.0;
  double stalled = 0.0;
  for (const StageTime& t : times) {
    mean += t.seconds / static_cast<double>(times.size());
    stalled += t.stall;
  }
  std::string forward, backward;
  for (const StageTime& t : times) {
    const double share = t.stall < 0.02 * mean ? 0.0 : std::min(1.0, t.stall / mean);
    const auto shade = static_cast<std::size_t>(std::ceil(share * static_cast<double>(kShades.size() - 1)));
    (t.backward ? backward : forward) += kShades[shade];
  }
  return fmt::format("    forward  |{}|\n    backward |{}|  waiting {:.1f} ms in all\n", forward, backward,
                     stalled * 1e3);
}

Result measure(Device& device, const Slab& slab, const FluxRun& run, int repeats) {
  FluxEngine engine(device, slab, run);
  TrainingSteps steps(engine);
  Result result;
  result.step = steps.measure(repeats).seconds;
  engine.runner().measure();
  steps.next();
  result.timeline = timeline(engine.runner().times());
  if (!run.residency.streamed.empty()) {
    const auto transfer = [&] { engine.runner().transfer(); };
    transfer();
    const double before = engine.weights().bytes_brought();
    result.transfer = median_seconds(repeats, transfer, &device);
    result.bytes = (engine.weights().bytes_brought() - before) / (repeats + 1);
  }
  std::vector<float> adapters(static_cast<std::size_t>(engine.lora().count()));
  device.download(engine.lora().parameters(), adapters.data());
  result.adapters = checksum_of(std::as_bytes(std::span(adapters)));
  return result;
}

}  // namespace

int run_stream(const SpeedOptions& speed, const StreamOptions& options) {
  const Slab slab(speed.slab);
  const std::unique_ptr<Device> device = open_device(speed.device, speed.threads, speed.compute);
  FluxRun run = training_run(speed, slab.flux_shape());
  nlohmann::json json;
  const double pinned = pinned_rate(*device);
  json["pinned_gbps"] = pinned * 1e-9;
  if (!speed.json) fmt::print("plain pinned copy: {:.1f} GB/s\n", pinned * 1e-9);

  std::string adapters;
  bool equal = true;
  const auto compare = [&](const Result& result) {
    if (adapters.empty()) adapters = result.adapters;
    equal &= adapters == result.adapters;
  };
  double compute = 0.0;
  if (options.resident) {
    const Result result = measure(*device, slab, run, speed.repeats);
    compare(result);
    compute = json["resident_seconds"] = result.step;
    if (!speed.json) fmt::print("all weights on the device: step {:.4f} s\n", compute);
  }
  for (const SlabBlock& block : slab.blocks()) run.residency.streamed.push_back(block.id);
  run.residency.slots = options.slots;
  run.residency.readers = options.readers;
  for (const auto& [path, name] : kNames) {
    if (!options.paths.empty() && std::find(options.paths.begin(), options.paths.end(), path) == options.paths.end()) {
      continue;
    }
    run.residency.path = path;
    try {
      const Result r = measure(*device, slab, run, speed.repeats);
      compare(r);
      const double longest = std::max(compute, r.transfer);
      json[name] = {{"seconds", r.step},
                    {"transfer_seconds", r.transfer},
                    {"bytes", r.bytes},
                    {"transfer_gbps", r.bytes / r.transfer * 1e-9},
                    {"over_longest", r.step / longest},
                    {"adapters", r.adapters}};
      if (speed.json) continue;
      fmt::print(
          "{:<10} step {:.4f} s; transfers alone {:.4f} s, {:.2f} GB, {:.1f} GB/s ({:.2f} of pinned); {:.3f} of "
          "the longer one\n{}",
          name, r.step, r.transfer, r.bytes * 1e-9, r.bytes / r.transfer * 1e-9, r.bytes / r.transfer / pinned,
          r.step / longest, r.timeline);
    } catch (const ConfigError& error) {
      json[name] = error.what();
      if (!speed.json) fmt::print("{:<10} not here: {}\n", name, error.what());
    }
  }
  // Every second stage on the device.
  std::vector<std::string>& streamed = run.residency.streamed;
  for (std::size_t i = streamed.size(); i-- > 0;) {
    if (i % 2 == 0) streamed.erase(streamed.begin() + static_cast<std::ptrdiff_t>(i));
  }
  run.residency.path = HostPath::kAuto;
  const Result half = measure(*device, slab, run, speed.repeats);
  compare(half);
  json["half_streamed"] = {{"seconds", half.step}, {"transfer_seconds", half.transfer}, {"adapters", half.adapters}};
  if (!speed.json) fmt::print("every second stage streamed: step {:.4f} s\n{}", half.step, half.timeline);
  json["equal"] = equal;
  if (speed.json) {
    fmt::print("{}\n", json.dump(1));
  } else {
    fmt::print("adapters of all runs {}; {:.0f} MiB of anonymous host memory\n",
               equal ? "are equal bit for bit" : "DIFFER", static_cast<double>(anonymous_host_memory()) / 0x1p20);
  }
  return equal ? 0 : 1;
}

}  // namespace squareq::bench
