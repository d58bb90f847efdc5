#include "apps/bench/flops.h"

#include <algorithm>

namespace squareq::bench {
namespace {

// Rows that one linear sees per sample.
std::int64_t rows_of(const flux::State& s, const std::string& linear) {
  const bool per_sample = linear.find("_mod.lin") != std::string::npos || linear.ends_with("modulation.lin") ||
                          linear.find("adaLN") != std::string::npos || linear.find("_layer") != std::string::npos;
  if (linear == "final_layer.linear") return s.sequence.output;
  if (per_sample) return 1;
  const std::int64_t image = s.sequence.image + s.sequence.reference;
  if (linear.find("img_") != std::string::npos) return image;
  if (linear.find("txt_") != std::string::npos) return s.sequence.text;
  return s.tokens();
}

bool in_block(const std::string& linear) {
  return linear.find("_blocks.") != std::string::npos && linear.find("mod") == std::string::npos;
}

double rows_in_batch(const flux::State& s, const std::string& linear) {
  return static_cast<double>(s.batch * rows_of(s, linear));
}

double product_of(const flux::State& s, const flux::LinearShape& linear) {
  return 2.0 * rows_in_batch(s, linear.name) * static_cast<double>(linear.in) * static_cast<double>(linear.out);
}

// One of the two products of one block's attention.
double attention_product(const flux::State& s) {
  const auto tokens = static_cast<double>(s.tokens());
  return 2.0 * static_cast<double>(s.batch) * tokens * tokens * static_cast<double>(s.hidden());
}

// The last linear's output is read by the gradient of its gate alone. What adapters project down is there.
double recomputation_of(FluxEngine& engine, const Stage& stage) {
  const flux::State& s = engine.state();
  const Runner& runner = engine.runner();
  const bool gates = std::ranges::any_of(
      runner.stages(), [&](const Stage& other) { return other.id == "modulation." + stage.id && other.has_backward; });
  double flops = runner.recomputes_attention(stage) ? 2.0 * attention_product(s) : 0.0;
  for (const flux::LinearShape& linear : flux::linears(s.shape)) {
    const bool last = linear.name.ends_with("mlp.2") || linear.name.ends_with("linear2");
    if (!in_block(linear.name) || !linear.name.starts_with(stage.id + ".") || (last && !gates)) continue;
    flops += product_of(s, linear);
    for (const LoraTarget& t : engine.lora().targets()) {
      if (t.linear == linear.name) flops += 2.0 * rows_in_batch(s, linear.name) * static_cast<double>(t.rank * t.rows);
    }
  }
  return flops;
}

}  // namespace

StepFlops count_flops(FluxEngine& engine) {
  const flux::State& s = engine.state();
  StepFlops flops;
  for (const flux::LinearShape& linear : flux::linears(s.shape)) {
    const double product = product_of(s, linear);
    flops.forward += product;
    if (!s.wanted.gradients) continue;
    // The first block's input needs no gradient unless something below it is trained.
    const bool lowest = linear.name.starts_with("double_blocks.0.") && linear.name.ends_with("qkv");
    if (linear.name == "final_layer.linear" || (in_block(linear.name) && (!lowest || s.vec_gradient))) {
      flops.backward += product;
    }
    for (const LoraTarget& t : engine.lora().targets()) {
      if (t.linear != linear.name) continue;
      const double adapter = 2.0 * rows_in_batch(s, linear.name) * static_cast<double>(t.rank * (t.in + t.rows));
      flops.forward += adapter;
      flops.backward += 2.0 * adapter;  // dB, dU; dA, dX
    }
  }
  const double attention = attention_product(s) * static_cast<double>(s.blocks());
  flops.forward += 2.0 * attention;
  if (s.wanted.gradients) flops.backward += 5.0 * attention;
  for (const Stage& stage : engine.runner().stages()) {
    if (engine.runner().recomputes(stage)) flops.recompute += recomputation_of(engine, stage);
  }
  return flops;
}

}  // namespace squareq::bench
