#include "apps/bench/flops.h"

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

}  // namespace

StepFlops count_flops(const flux::State& s, const LoraSet& lora, bool checkpointing) {
  StepFlops flops;
  const auto batch = static_cast<double>(s.batch);
  for (const flux::LinearShape& linear : flux::linears(s.shape)) {
    const double rows = batch * static_cast<double>(rows_of(s, linear.name));
    const double product = 2.0 * rows * static_cast<double>(linear.in) * static_cast<double>(linear.out);
    const bool last = linear.name.ends_with("mlp.2") || linear.name.ends_with("linear2");
    flops.forward += product;
    if (!s.wanted.gradients) continue;
    // The first block's input needs no gradient unless something below it is trained.
    const bool lowest = linear.name.starts_with("double_blocks.0.") && linear.name.ends_with("qkv");
    if (linear.name == "final_layer.linear" || (in_block(linear.name) && (!lowest || s.vec_gradient))) {
      flops.backward += product;
    }
    if (checkpointing && in_block(linear.name) && !last) flops.recompute += product;
    for (const LoraTarget& t : lora.targets()) {
      if (t.linear != linear.name) continue;
      const double adapter = 2.0 * rows * static_cast<double>(t.rank) * static_cast<double>(t.in + t.rows);
      flops.forward += adapter;
      flops.backward += 2.0 * adapter;  // dB, dU; dA, dX
      if (checkpointing && in_block(linear.name) && !last) flops.recompute += adapter;
    }
  }
  const auto tokens = static_cast<double>(s.tokens());
  const double attention =
      2.0 * batch * tokens * tokens * static_cast<double>(s.hidden()) * static_cast<double>(s.blocks());
  flops.forward += 2.0 * attention;
  if (s.wanted.gradients) flops.backward += 5.0 * attention;
  if (s.wanted.gradients && checkpointing) flops.recompute += 2.0 * attention;
  return flops;
}

}  // namespace squareq::bench
