#include "apps/bench/speed.h"

#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "apps/bench/families.h"
#include "apps/bench/flops.h"
#include "apps/bench/measure.h"
#include "apps/bench/training_step.h"
#include "engine/memory_plan.h"
#include "engine/pipeline.h"
#include "kernels/cpu/gemm.h"

namespace squareq::bench {
namespace {

std::string stage_kind(const std::string& id) { return id.substr(0, id.find('.')); }

// A step on a device that is not the host.
struct DeviceStep {
  double seconds = 0.0;
  double flop = 0.0;
  double gradient_seconds = 0.0;                    // of all but the optimizer
  std::optional<Device::Kernels> gradient_kernels;  // a step whose weights stream cannot run without the host
  KernelTimes families;
};

void report_device_step(const Device& device, const FluxEngine& engine, const DeviceStep& step, bool json) {
  if (json) {
    nlohmann::json memory;
    for (const auto& [purpose, bytes] : engine.memory_plan()) memory[purpose] = bytes;
    nlohmann::json report{{"device", device.name()},
                          {"seconds", step.seconds},
                          {"tflop", step.flop * 1e-12},
                          {"tflops", step.flop / step.seconds * 1e-12},
                          {"gradient_seconds", step.gradient_seconds},
                          {"families", families_json(step.families)},
                          {"memory", memory}};
    if (step.gradient_kernels) {
      report["gradient_kernels"] = step.gradient_kernels->count;
      report["gradient_kernel_seconds"] = step.gradient_kernels->seconds;
    }
    fmt::print("{}\n", report.dump());
    return;
  }
  fmt::print("{}: step {:.4f} s, {:.1f} TFLOP in matrix products, {:.1f} TFLOP/s\n", device.name(), step.seconds,
             step.flop * 1e-12, step.flop / step.seconds * 1e-12);
  for (const auto& [purpose, bytes] : engine.memory_plan()) {
    fmt::print("  {:9.1f} MiB  {}\n", static_cast<double>(bytes) / 0x1p20, purpose);
  }
  fmt::print("  without the optimizer {:.4f} s\n", step.gradient_seconds);
  if (step.gradient_kernels) {
    fmt::print("  its {} kernels right after each other, without the host, {:.4f} s\n", step.gradient_kernels->count,
               step.gradient_kernels->seconds);
  }
  print_families(step.families);
}

}  // namespace

double gemm_rate(std::int64_t n, int threads, int repeats) {
  const std::vector<float> a = random_floats(n * n, 1);
  const std::vector<float> b = random_floats(n * n, 2);
  std::vector<float> c(a.size());
  use_library_threads(threads);
  const double seconds = median_seconds(repeats, [&] {
    gemm({.m = n, .n = n, .k = n, .a = a.data(), .lda = n, .b = b.data(), .ldb = n, .c = c.data(), .ldc = n});
  });
  use_calling_thread_only();
  return 2.0 * static_cast<double>(n * n * n) / seconds * 1e-9;
}

int run_block(const SpeedOptions& options) {
  const Slab slab(options.slab);
  const std::unique_ptr<Device> device = open_device(options.device, options.threads, options.compute);
  FluxEngine engine(*device, slab, training_run(options, slab.flux_shape()));
  set_random_inputs(engine);
  struct Times {
    std::vector<double> forward, backward;
  };
  std::map<std::string, Times> kinds;
  for (int i = 0; i <= options.repeats; ++i) {
    if (i > 0) engine.runner().measure();  // the first time warms up
    engine.forward();
    device->ops().copy(engine.state().prediction, engine.state().dprediction, Accumulate::kNo);
    engine.backward();
    for (const StageTime& t : engine.runner().times()) {
      Times& times = kinds[stage_kind(t.stage->id)];
      (t.backward ? times.backward : times.forward).push_back(t.seconds);
    }
  }
  nlohmann::json json;
  for (const auto& [kind, times] : kinds) {
    const double forward = median(times.forward) * 1e3;
    const double backward = times.backward.empty() ? 0.0 : median(times.backward) * 1e3;
    json[kind] = {{"forward_ms", forward}, {"backward_ms", backward}};
    if (!options.json) fmt::print("{:<16} forward {:9.3f} ms   backward {:9.3f} ms\n", kind, forward, backward);
  }
  if (options.json) fmt::print("{}\n", json.dump(1));
  return 0;
}

int run_step(const SpeedOptions& options) {
  const Slab slab(options.slab);
  const std::unique_ptr<Device> device = open_device(options.device, options.threads, options.compute);
  FluxRun run = training_run(options, slab.flux_shape());
  if (options.budget > 0.0) {
    const MemoryPlan plan = plan_for(*device, slab, run, measure_rates(*device, slab, run), options.budget);
    if (!options.json) fmt::print("{}", plan_text(plan));
    run = plan.apply(std::move(run));
  }
  if (options.prepared) run = with_prepared_blocks(*device, slab, std::move(run));
  FluxEngine engine(*device, slab, run);
  TrainingSteps steps(engine);
  const auto [seconds, allocations] = steps.measure(options.repeats);
  const StepFlops flops = count_flops(engine);
  const double rate = flops.total() / seconds * 1e-9;
  if (!options.json && !run.residency.streamed.empty()) {
    fmt::print("weights that stream come by {}\n", engine.weights().path_name());
  }
  if (!device->reads_host_memory()) {
    if (!options.json) {
      fmt::print("driver: {:.1f} MiB in use by this process; {} device allocations in {} steps\n",
                 static_cast<double>(device->memory().ours) / 0x1p20, allocations, options.repeats);
    }
    DeviceStep measured{.seconds = seconds, .flop = flops.total()};
    const auto gradients = [&] { compute_gradients(engine); };
    measured.gradient_seconds = median_seconds(options.repeats, gradients, device.get());
    if (run.residency.streamed.empty()) measured.gradient_kernels = device->back_to_back(gradients);
    measured.families = device->profile([&] { steps.next(); });
    report_device_step(*device, engine, measured, options.json);
    return 0;
  }
  const double ceiling = gemm_rate(2048, options.threads, 5);
  if (options.json) {
    fmt::print("{}\n", nlohmann::json{{"seconds", seconds},
                                      {"gflop", flops.total() * 1e-9},
                                      {"gflops", rate},
                                      {"openblas_2048_gflops", ceiling},
                                      {"ratio", rate / ceiling}}
                           .dump());
  } else {
    fmt::print("step: {:.4f} s (median of {}), {:.2f} GFLOP in matrix products, {:.1f} GFLOP/s\n", seconds,
               options.repeats, flops.total() * 1e-9, rate);
    fmt::print("OpenBLAS at 2048: {:.1f} GFLOP/s; ratio {:.2f}\n", ceiling, rate / ceiling);
  }
  return 0;
}

}  // namespace squareq::bench
