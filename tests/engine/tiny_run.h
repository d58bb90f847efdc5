// Training runs small enough for tests.
#pragma once

#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/training_run.h"
#include "io/slab_build.h"
#include "tests/engine/memory_set.h"
#include "tests/engine/tiny_model.h"
#include "tests/support.h"

namespace squareq::test {

// Four samples of 2 x 3 tokens; `value`, if given, stands first in every latent.
inline TrainingSet random_set(std::optional<float> value = std::nullopt) {
  const Grid grid{.rows = 2, .cols = 3};
  std::vector<EncodedExample> examples;
  for (std::uint32_t i = 0; i < 4; ++i) {
    examples.push_back(random_example(grid, i));
    if (value) examples.back().latent[0] = *value;
  }
  return memory_set({grid}, std::vector<DrawnSample>(4), std::move(examples));
}

inline TrainConfig small_config() {
  return parse_train_config(R"({"model": "m", "data": {"folder": "d", "resolution": "48x32"}, "lora": {"rank": 4},
                                "training": {"steps": 12, "batch_size": 4, "learning_rate": 1e-2}})",
                            "/run.json");
}

struct TinyRun : TinySlab {
  Trainer trainer(const TrainConfig& config, std::optional<float> value = std::nullopt) {
    TrainingSet data = random_set(value);
    const FluxRun run = training_run(config, slab->flux_shape(), sequences_of(data));
    return Trainer(*device, *slab, config, std::move(data), {}, run);
  }
};

inline std::vector<float> floats_of(const View& view) { return {view.f32(), view.f32() + view.count()}; }
inline std::vector<float> parameters(Trainer& trainer) { return floats_of(trainer.engine().lora().parameters()); }

inline std::vector<float> trained(TinyRun& bench, const TrainConfig& config) {
  Trainer trainer = bench.trainer(config);
  while (trainer.progress().step < config.training.steps) trainer.step();
  return parameters(trainer);
}

}  // namespace squareq::test
