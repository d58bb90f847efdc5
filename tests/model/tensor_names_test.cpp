// The networks ask for exactly the tensors that the lists of io say they have.
#include <map>
#include <numeric>
#include <string>
#include <utility>

#include "io/tensor_names.h"
#include "model/clip.h"
#include "model/flux/transformer.h"
#include "model/t5.h"
#include "model/vae.h"
#include "tests/catch.h"

using namespace squareq;

namespace {

// Rows and columns by name.
using Sizes = std::map<std::string, std::pair<std::int64_t, std::int64_t>>;

struct Collector : WeightVisitor {
  Sizes sizes;
  void linear(const std::string& name, Weight&, std::int64_t out, std::int64_t in, bool bias) override {
    sizes[name + ".weight"] = {out, in};
    if (bias) sizes[name + ".bias"] = {1, out};
  }
  void tensor(const std::string& name, ConstView&, std::int64_t rows, std::int64_t cols) override {
    sizes[name] = {rows, cols};
  }
};

Sizes sizes_of(const std::vector<NamedShape>& tensors) {
  Sizes sizes;
  for (const auto& [name, shape] : tensors) {
    const std::int64_t count = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
    const std::int64_t rows = shape.size() == 1 ? 1 : shape.front();
    sizes[name] = {rows, count / rows};
  }
  return sizes;
}

Sizes sizes_of(const std::vector<Stage>& stages) {
  Collector collector;
  for (const Stage& stage : stages) stage.weights(collector);
  return collector.sizes;
}

}  // namespace

TEST_CASE("networks and tensor lists agree") {
  SECTION("CLIP") {
    const ClipShape shape{.vocab = 49408, .width = 768, .layers = 12, .heads = 12, .mlp_hidden = 3072};
    clip::Weights weights;
    Collector collector;
    clip::weights(collector, shape, weights);
    CHECK(collector.sizes.size() == 196);
    CHECK(collector.sizes == sizes_of(clip_tensors(shape)));
  }
  SECTION("T5") {
    t5::State state{
        .shape = {.vocab = 32128, .width = 4096, .layers = 24, .heads = 64, .head_dim = 64, .mlp_hidden = 10240}};
    CHECK(sizes_of(t5::stages(state)).size() == 219);
    CHECK(sizes_of(t5::stages(state)) == sizes_of(t5_tensors(state.shape)));
  }
  SECTION("autoencoder") {
    const VaeShape shape{.width = 128, .multipliers = {1, 2, 4, 4}, .resnets = 2};
    vae::Network encoder = vae::make_encoder(shape);
    vae::Network decoder = vae::make_decoder(shape);
    Collector collector;
    vae::weights(collector, encoder);
    vae::weights(collector, decoder);
    CHECK(collector.sizes.size() == 244);
    CHECK(collector.sizes == sizes_of(vae_tensors(shape)));
  }
  SECTION("transformer") {
    for (const bool guidance : {false, true}) {
      flux::State state{.shape = {.hidden = 3072,
                                  .heads = 24,
                                  .head_dim = 128,
                                  .axes = {16, 56, 56},
                                  .double_blocks = 19,
                                  .single_blocks = 38,
                                  .mlp_hidden = 12288,
                                  .context_in = 4096,
                                  .vector_in = 768,
                                  .in_channels = 64,
                                  .out_channels = 64,
                                  .guidance = guidance},
                        .batch = 1};
      const Sizes sizes = sizes_of(flux::stages(state, LoraSet()));
      CHECK(sizes.size() == (guidance ? 780U : 776U));
      CHECK(sizes == sizes_of(flux_tensors(state.shape)));
    }
  }
}
