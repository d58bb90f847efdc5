// Random weights must not make activations vanish or explode, whatever the depth.
#include <cmath>
#include <numeric>

#include "engine/flux_engine.h"
#include "io/slab_build.h"
#include "model/t5.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using namespace squareq::test;

namespace {

double root_mean_square(Device& device, const View& view) {
  std::vector<float> values(static_cast<std::size_t>(view.count()));
  device.download(view, values.data());
  double sum = 0.0;
  for (const float v : values) sum += static_cast<double>(v) * static_cast<double>(v);
  return std::sqrt(sum / static_cast<double>(values.size()));
}

bool of_order_one(double value) { return value > 0.2 && value < 5.0; }

}  // namespace

TEST_CASE("synthetic weights: FLUX activations stay of order one through all blocks") {
  const TempDir folder;
  FluxShape shape = std::get<FluxShape>(named_shape("mini"));
  shape.double_blocks = 19;
  shape.single_blocks = 38;
  synthesize_slab(shape, folder.file("a.slab"));
  const Slab slab(folder.file("a.slab"));
  const std::unique_ptr<Device> device = make_cpu_device(0);
  Sequence sequence = make_sequence(6, {3, 4});
  FluxEngine engine(*device, slab, {.sequences = {sequence}});
  std::vector<float> img(static_cast<std::size_t>(12 * shape.in_channels));
  std::vector<float> txt(static_cast<std::size_t>(6 * shape.context_in));
  std::vector<float> y(static_cast<std::size_t>(shape.vector_in));
  fill_random(img, 1);
  fill_random(txt, 2);
  fill_random(y, 3);
  engine.set_sample(0, {.img = img, .txt = txt, .y = y, .sigma = 0.5, .guidance = 3.5});
  std::size_t block = 0;
  engine.forward([&](const Stage& stage) {
    if (!stage.id.starts_with("double_blocks.") && !stage.id.starts_with("single_blocks.")) return;
    const double size = root_mean_square(*device, engine.state().x.at(++block));
    INFO(stage.id << ": " << size);
    CHECK(of_order_one(size));
  });
  CHECK(block == 57);
  CHECK(of_order_one(root_mean_square(*device, engine.state().vec)));
  CHECK(of_order_one(root_mean_square(*device, engine.state().prediction)));
}

TEST_CASE("synthetic weights: T5 activations stay of order one through all blocks") {
  const TempDir folder;
  const T5Shape shape{.vocab = 500, .width = 256, .layers = 24, .heads = 4, .head_dim = 64, .mlp_hidden = 640};
  synthesize_slab(shape, folder.file("a.slab"));
  const Slab slab(folder.file("a.slab"));
  const std::unique_ptr<Device> device = make_cpu_device(0);
  SlabStore store(slab, *device);
  t5::State state{.shape = shape, .batch = 1, .length = 16};
  state.ids.resize(16);
  std::iota(state.ids.begin(), state.ids.end(), 3);
  Runner runner(*device, store, t5::stages(state), Keep::kNothing);
  const auto layout = [&](Carver& carver) {
    t5::layout(carver, state);
    store.layout(carver, runner.stages());
    runner.layout(carver);
  };
  const Arena arena(*device, {.layout = layout, .rehearse = [&](Ops&) { runner.rehearse(); }});
  arena.use();
  runner.forward([&](const Stage& stage) {
    const double size = root_mean_square(*device, stage.id == "final" ? state.output : state.x);
    INFO(stage.id << ": " << size);
    CHECK(of_order_one(size));
  });
}
