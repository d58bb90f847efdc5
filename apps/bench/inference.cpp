#include "apps/bench/inference.h"

#include <fmt/format.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "apps/bench/measure.h"
#include "apps/bench/temporary.h"
#include "engine/encoders.h"
#include "engine/memory_plan.h"
#include "engine/pipeline.h"
#include "engine/sampler.h"
#include "io/safetensors.h"

namespace squareq::bench {
namespace {

void print(const std::string& what, const std::map<std::string, double>& seconds, const Device& device, bool json) {
  if (json) {
    fmt::print("{}\n", nlohmann::json{{"what", what}, {"device", device.name()}, {"seconds", seconds}}.dump());
    return;
  }
  fmt::print("{}: {}\n", device.name(), what);
  for (const auto& [part, time] : seconds) fmt::print("  {:<10} {:10.2f} ms\n", part, time * 1e3);
}

// Writes random weights, of deviation 1 / sqrt(inputs of an output), for what it is shown.
class RandomCheckpoint : public WeightVisitor {
 public:
  void linear(const std::string& name, Weight& slot, std::int64_t out, std::int64_t in, bool bias) override {
    tensor(name + ".weight", slot.values, out, in);
    if (bias) tensor(name + ".bias", slot.bias, 1, out);
  }
  void tensor(const std::string& name, ConstView&, std::int64_t rows, std::int64_t cols) override {
    std::vector<float>& values = values_[name];
    values = random_floats(rows * cols, static_cast<std::uint32_t>(values_.size()));
    for (float& value : values) value /= std::sqrt(static_cast<float>(rows == 1 ? 1 : cols));
    const std::int64_t kernel =
        name.find("nin_shortcut") != std::string::npos || name.find("attn_1") != std::string::npos ? 1 : 3;
    std::vector<std::int64_t> shape{cols};
    if (rows > 1) shape = {rows, cols / (kernel * kernel), kernel, kernel};
    tensors_.push_back({.name = name, .dtype = DType::F32, .shape = shape, .data = std::as_bytes(std::span(values))});
  }
  void write(const std::string& path) const { write_safetensors(path, tensors_, {}); }

 private:
  std::map<std::string, std::vector<float>> values_;
  std::vector<TensorOut> tensors_;
};

struct PromptRun {
  double seconds = 0.0;
  std::size_t activations = 0, scratch = 0, in_use = 0;  // bytes
  std::vector<float> output;
};

PromptRun run_prompts(const SpeedOptions& options, const Slab& slab, Device& device, const Residency& residency) {
  t5::State state{
      .shape = slab.t5_shape(), .batch = 1, .length = options.text, .activations = device.ops().activation_type()};
  for (std::int64_t i = 0; i < options.text; ++i) {
    state.ids.push_back(static_cast<std::int32_t>(i * 7919 % state.shape.vocab));
  }
  PromptRun run;
  Arena arena;  // outlives the store, which copies into it
  SlabStore store(slab, device, residency);
  Runner runner(device, store, t5::stages(state), Keep::kNothing);
  const auto layout = [&](Carver& carver) {
    t5::layout(carver, state);
    runner.layout(carver);
    run.activations = carver.used();
    store.layout(carver, runner.stages());
  };
  arena = Arena(device, {.layout = layout, .rehearse = [&](Ops&) { runner.rehearse(); }});
  arena.use();
  run.scratch = arena.scratch_bytes();
  run.seconds = median_seconds(
      options.repeats, [&] { runner.forward(); }, &device);
  run.in_use = device.memory().ours;
  run.output.resize(static_cast<std::size_t>(state.output.count()));
  device.download(state.output, run.output.data());
  return run;
}

}  // namespace

int run_t5(const SpeedOptions& options) {
  const Slab slab(options.slab);
  const std::unique_ptr<Device> device = open_device(options.device, options.threads, options.compute);
  const std::string what = fmt::format("T5, one prompt of {} tokens", options.text);
  const PromptRun resident = run_prompts(options, slab, *device, {});
  print(what, {{"prompt", resident.seconds}}, *device, options.json);
  if (options.budget <= 0.0) return 0;

  const auto budget = static_cast<std::size_t>(options.budget * 0x1p30);
  const EncoderPlan plan =
      plan_encoder({.phase = {}, .slab = &slab, .activations = resident.activations, .scratch = resident.scratch},
                   driver_memory(*device, slab), budget);
  const PromptRun streamed = run_prompts(options, slab, *device, plan.residency);
  print(fmt::format("{}, {} of {} stages streamed", what, plan.residency.streamed.size(), slab.blocks().size()),
        {{"prompt", streamed.seconds}}, *device, options.json);
  const bool equal = streamed.output == resident.output;
  if (!options.json) {
    constexpr double kMiB = 0x1p20;
    fmt::print("  planned {:.1f} MiB of {:.1f}, the driver reports {:.1f}; {}\n",
               static_cast<double>(plan.phase.total()) / kMiB, static_cast<double>(budget) / kMiB,
               static_cast<double>(streamed.in_use) / kMiB, equal ? "the same comes out" : "SOMETHING ELSE comes out");
  }
  return equal && plan.phase.total() <= budget ? 0 : 1;
}

int run_vae(const SpeedOptions& options) {
  const VaeShape shape{.width = 128, .multipliers = {1, 2, 4, 4}, .resnets = 2};
  const TemporaryFile file("ae.safetensors");
  RandomCheckpoint checkpoint;
  for (vae::Network network : {vae::make_encoder(shape), vae::make_decoder(shape)}) vae::weights(checkpoint, network);
  checkpoint.write(file.path());
  const std::unique_ptr<Device> device = open_device(options.device, options.threads, options.compute);
  const PictureSize size{.height = options.rows * 2 * shape.factor(), .width = options.cols * 2 * shape.factor()};
  Autoencoder encoder(*device, file.path(), Autoencoder::Half::kEncoder, {size});
  Autoencoder decoder(*device, file.path(), Autoencoder::Half::kDecoder, {size});
  encoder.allocate();
  decoder.allocate();
  const std::vector<float> picture = random_floats(3 * size.height * size.width, 1);
  const std::vector<float> latent = random_floats(options.rows * options.cols * 4 * shape.latent_channels, 2);
  const double encode = median_seconds(options.repeats, [&] { encoder.encode(picture, size); });
  const double decode = median_seconds(options.repeats, [&] { decoder.decode(latent, size); });
  print(fmt::format("autoencoder, {} x {} pixels", size.width, size.height), {{"encode", encode}, {"decode", decode}},
        *device, options.json);
  return 0;
}

int run_sampling(const SpeedOptions& options) {
  const Slab slab(options.slab);
  const FluxShape& shape = slab.flux_shape();
  const std::unique_ptr<Device> device = open_device(options.device, options.threads, options.compute);
  const Grid grid{.rows = options.rows, .cols = options.cols};
  FluxRun run{.batch = options.batch, .sequences = {make_sequence(options.text, grid)}};
  if (options.prepared) run = with_prepared_blocks(*device, slab, std::move(run));
  FluxEngine engine(*device, slab, run);
  const std::vector<float> text = random_floats(options.text * shape.context_in, 1);
  const std::vector<float> pooled = random_floats(shape.vector_in, 2);
  const std::vector<FluxEngine::Sample> conditions(static_cast<std::size_t>(options.batch),
                                                   {.txt = text, .y = pooled, .guidance = 3.5});
  std::vector<float> latents = random_floats(options.batch * grid.tokens() * shape.in_channels, 3);
  const std::vector<double> sigmas =
      sigma_schedule(options.repeats + 1, ScheduleShift{}, grid.tokens());  // the first step warms up
  std::vector<double> times;
  auto last = std::chrono::steady_clock::now();
  euler_sample(engine, conditions, sigmas, latents, [&](std::size_t step) {
    const auto now = std::chrono::steady_clock::now();
    if (step > 1) times.push_back(std::chrono::duration<double>(now - last).count());
    last = now;
  });
  print(fmt::format("sampling, {} steps after one, batch {}, {} image tokens", options.repeats, options.batch,
                    grid.tokens()),
        {{"step", median(times)}}, *device, options.json);
  return 0;
}

}  // namespace squareq::bench
