#include <array>
#include <cmath>
#include <numeric>

#include "tests/catch.h"
#include "tests/model/flux_harness.h"

using namespace squareq;
using namespace squareq::test;

namespace {

bool close(double value, double expected, double tolerance) { return std::fabs(value - expected) <= tolerance; }

std::vector<float> random_values(std::size_t count, std::uint32_t stream) {
  std::vector<float> values(count);
  Random({.seed = 7, .purpose = Purpose::kTest, .module = stream}).fill_normal(values);
  return values;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0, std::plus<>(),
                            [](float x, float y) { return static_cast<double>(x) * y; });
}

std::vector<LoraTarget> targets_on(const FluxShape& shape, std::int64_t rank, double scale, bool blocks_only) {
  std::vector<LoraTarget> targets;
  for (const flux::LinearShape& linear : flux::linears(shape)) {
    if (blocks_only && linear.name.find("_blocks.") == std::string::npos) continue;
    targets.push_back({.linear = linear.name, .rows = linear.out, .in = linear.in, .rank = rank, .scale = scale});
  }
  return targets;
}

// Inputs and expectations of the original code in float64 on the weights of support_spec_weights.h.
struct SpecCase {
  std::vector<float> x0 = spec_values("input.x0", 2 * 6 * 16, 1.0);
  std::vector<float> noise = spec_values("input.noise", 2 * 6 * 16, 1.0);
  std::vector<float> target;

  void apply(FluxHarness& h) {
    const std::vector<float> sigma{0.25F, 0.8F};
    std::vector<float> img(x0.size());
    target.resize(x0.size());
    for (std::size_t i = 0; i < x0.size(); ++i) {
      const float s = sigma[i / (6 * 16)];
      img[i] = (1.0F - s) * x0[i] + s * noise[i];
      target[i] = noise[i] - x0[i];
    }
    set(h.state.img, img);
    set(h.state.txt, spec_values("input.txt", 2 * 5 * 48, 1.0));
    set(h.state.y, spec_values("input.y", 2 * 24, 1.0));
    h.state.sigma = sigma;
    h.state.guidance = {1.0F, 3.5F};
  }
  double loss(FluxHarness& h, bool gradients) {
    std::vector<float> each(2);
    View t(reinterpret_cast<std::byte*>(target.data()), DType::F32, 2, 6, 16);
    h.ops->flow_loss({.prediction = h.state.prediction,
                      .target = t,
                      .gradient_weight = std::array{0.5F, 0.5F},
                      .loss = each,
                      .dprediction = gradients ? h.state.dprediction : View{}});
    return 0.5 * (static_cast<double>(each[0]) + static_cast<double>(each[1]));
  }
};

}  // namespace

TEST_CASE("a tiny transformer reproduces the original code") {
  FluxHarness h(tiny_flux(), make_sequence(5, {2, 3}), 2, {.gradients = true}, {});
  CHECK(h.weights.count() == 483984);
  SpecCase spec;
  spec.apply(h);
  h.forward();
  const double t = 2e-4;
  const float* vec = h.state.vec.f32();
  CHECK(close(vec[0], 0.77247886, t));
  CHECK(close(vec[3], 0.45575098, t));
  CHECK(close(h.state.vec.f32(1)[0], 0.61317259, t));
  CHECK(close(h.state.x[1].f32(0, 5)[0], 0.40673402, t));  // image rows follow the five text rows
  CHECK(close(h.state.x[1].f32(0, 0)[0], -0.70659278, t));
  CHECK(close(h.state.x[3].f32(0, 0)[0], -0.65324586, t));
  CHECK(close(h.state.x[3].f32(1, 10)[63], 1.22183137, t));
  const std::vector<float> out = get(h.state.prediction);
  CHECK(close(out[0], 0.44441096, t));
  CHECK(close(out[2], 1.50573627, t));
  CHECK(close(out[191], -0.18070787, t));
  CHECK(close(std::accumulate(out.begin(), out.end(), 0.0), 43.16342024, 2e-3));
  CHECK(close(spec.loss(h, false), 3.29392833, 1e-4));
}

TEST_CASE("adapter gradients reproduce the original code") {
  FluxHarness h(tiny_flux(), make_sequence(5, {2, 3}), 2, {.gradients = true}, targets_on(tiny_flux(), 4, 0.5, true));
  SpecCase spec;
  spec.apply(h);
  const auto& targets = h.lora.targets();
  REQUIRE(targets.size() == 2 * 10 + 2 * 3);
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const LoraTarget& target = targets[i];
    set(h.lora.a(i), spec_values("lora_A:" + target.linear, 4 * target.in, 1.0 / std::sqrt(target.in)));
    set(h.lora.b(i), spec_values("lora_B:" + target.linear, 4 * target.rows, 0.1));
  }
  h.forward();
  CHECK(close(h.state.prediction.f32()[0], 0.53762568, 2e-4));
  CHECK(close(spec.loss(h, true), 3.25571992, 1e-4));
  h.backward();
  const std::vector<float> all = get(h.lora.gradients());
  CHECK(close(std::sqrt(dot(all, all)), 0.85471090, 1e-4));
  struct Expected {
    const char* linear;
    double a0, norm_a, b0, norm_b;
  };
  const Expected expected[] = {
      {"double_blocks.0.img_attn.qkv", -0.00198466, 0.10831418, 0.00777347, 0.11833846},
      {"double_blocks.0.txt_mlp.2", 0.00091866, 0.03485857, -0.00001701, 0.03093465},
      {"double_blocks.1.txt_attn.proj", 0.00096570, 0.00844923, 0.00014481, 0.00879111},
      {"double_blocks.1.img_mod.lin", -0.00047216, 0.15715462, -0.00274780, 0.18744442},
      {"single_blocks.0.linear1", -0.00150423, 0.08315360, 0.00039757, 0.11483105},
      {"single_blocks.1.linear2", 0.00465601, 0.17697908, 0.00726527, 0.12642998},
      {"single_blocks.1.modulation.lin", 0.00509391, 0.08520465, 0.00164460, 0.15057114},
  };
  for (const Expected& e : expected) {
    INFO(e.linear);
    for (std::size_t i = 0; i < targets.size(); ++i) {
      if (targets[i].linear != e.linear) continue;
      const std::vector<float> da = get(h.lora.da(i));
      const std::vector<float> db = get(h.lora.db(i));
      CHECK(close(da[0], e.a0, 2e-6));
      CHECK(close(db[0], e.b0, 2e-6));
      CHECK(close(std::sqrt(dot(da, da)) / e.norm_a, 1.0, 2e-4));
      CHECK(close(std::sqrt(dot(db, db)) / e.norm_b, 1.0, 2e-4));
    }
  }
}

// Every adapter (embedders and final layer included) and every input, against central differences along a random
// direction, with a random cotangent on the output. Reference tokens, masked text and unequal noise levels are on.
TEST_CASE("gradients of the whole transformer agree with central differences") {
  const FluxShape shape = tiny_flux();
  FluxHarness h(shape, make_sequence(5, {2, 3}, {{1, 2}}), 2, {.gradients = true, .input_gradients = true},
                targets_on(shape, 3, 0.7, false));
  set(h.state.img, random_values(static_cast<std::size_t>(h.state.img.count()), 1));
  set(h.state.txt, random_values(static_cast<std::size_t>(h.state.txt.count()), 2));
  set(h.state.y, random_values(static_cast<std::size_t>(h.state.y.count()), 3));
  h.state.sigma = {0.3F, 0.9F};
  h.state.guidance = {1.0F, 4.0F};
  h.state.text_valid = {5, 3};
  std::vector<float> parameters = random_values(static_cast<std::size_t>(h.lora.count()), 4);
  for (float& p : parameters) p *= 0.1F;
  set(h.lora.parameters(), parameters);
  const std::vector<float> cotangent = random_values(static_cast<std::size_t>(h.state.prediction.count()), 5);
  h.forward();
  set(h.state.dprediction, cotangent);
  h.backward();

  const auto check = [&](const std::string& what, const View& value, const View& gradient, std::uint32_t stream) {
    INFO(what);
    const std::vector<float> saved = get(value);
    std::vector<float> direction = random_values(saved.size(), stream);
    const double expected = dot(get(gradient), direction);
    // The step moves the whole vector by 2 % of a typical parameter or input.
    const double step = what.starts_with("input") ? 1e-2 : 2e-3;
    const auto loss_at = [&](double amount) {
      std::vector<float> moved = saved;
      for (std::size_t i = 0; i < moved.size(); ++i) moved[i] += static_cast<float>(amount * direction[i]);
      set(value, moved);
      h.forward();
      set(value, saved);
      return dot(get(h.state.prediction), cotangent);
    };
    const double measured = (loss_at(step) - loss_at(-step)) / (2.0 * step);
    // The bound is relative to |gradient| |direction|, the size that the product has for aligned vectors, scaled to
    // the typical cosine 1 / sqrt(n) of a random direction: a gradient off by a factor of 3 misses it by far.
    const std::vector<float> g = get(gradient);
    const double typical = std::sqrt(dot(g, g));
    CHECK(typical > 0.0);
    CHECK(close(measured, expected, 0.02 * typical + 1e-4));
  };
  check("input img", h.state.img, h.state.dimg, 11);
  check("input txt", h.state.txt, h.state.dtxt, 12);
  check("input y", h.state.y, h.state.dy, 13);
  for (std::size_t i = 0; i < h.lora.targets().size(); ++i) {
    check(h.lora.targets()[i].linear + " A", h.lora.a(i), h.lora.da(i), static_cast<std::uint32_t>(100 + 2 * i));
    check(h.lora.targets()[i].linear + " B", h.lora.b(i), h.lora.db(i), static_cast<std::uint32_t>(101 + 2 * i));
  }
}
