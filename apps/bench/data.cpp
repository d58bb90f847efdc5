#include "apps/bench/data.h"

#include <fmt/format.h>

#include <deque>
#include <map>

#include "engine/pipeline.h"
#include "engine/run_setup.h"
#include "io/safetensors.h"

namespace squareq::bench {
namespace {

class Recording {
 public:
  void add(const std::string& name, std::vector<std::int64_t> shape, const std::vector<float>& values) {
    values_.push_back(values);  // a deque: what was added stays in place
    tensors_.push_back({name, DType::F32, std::move(shape), std::as_bytes(std::span(values_.back()))});
  }
  void add(const std::string& name, Device& device, const View& view) {
    std::vector<float> values(static_cast<std::size_t>(view.count()));
    device.download(view, values.data());
    add(name, {view.batch, view.rows, view.cols}, values);
  }
  void write(const std::string& path) const { write_safetensors(path, tensors_, {}); }

 private:
  std::deque<std::vector<float>> values_;
  std::vector<TensorOut> tensors_;
};

}  // namespace

int run_data(const std::string& config_path, std::int64_t steps, const std::string& output) {
  TrainConfig config = load_train_config(config_path);
  config.validation.folder.clear();
  config.preview.prompts.clear();
  const ModelParts parts = configured_parts(config);
  const std::unique_ptr<Device> device = open_device(config.device, config.threads, config.compute);
  const Slab slab = open_slab(config, parts);
  RunInputs inputs = RunSetup(config, parts, slab, *device).encode(std::nullopt);
  Trainer trainer(*device, slab, config, inputs.data, inputs.shift, training_run(config, slab.flux_shape(), inputs));
  Recording recording;
  for (std::int64_t step = 1; step <= steps; ++step) {
    trainer.step();
    FluxEngine& engine = trainer.engine();
    const flux::State& state = engine.state();
    recording.add(fmt::format("{}.noisy", step), *device, state.img);
    recording.add(fmt::format("{}.velocity", step), *device, engine.target());
    recording.add(fmt::format("{}.sigma", step), {state.batch}, state.sigma);
    recording.add(fmt::format("{}.text", step), *device, state.txt);
  }
  recording.write(output);
  return 0;
}

}  // namespace squareq::bench
