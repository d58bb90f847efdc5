// A linear layer of a network: its frozen weight, the adapters on it and what the adapters save.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kernels/ops.h"
#include "model/stage.h"

namespace squareq {

struct Linear {
  std::string name;  // of the linear in the checkpoint, without ".weight"
  std::int64_t out = 0;
  std::int64_t in = 0;
  bool bias = true;
  Weight weight;                 // bound by the engine
  std::vector<LoraBranch> lora;  // bound once
  View u;                        // [B, T, adapter_columns(lora)], saved by forward, lasts to a recomputation

  void visit(WeightVisitor& visitor) { visitor.linear(name, weight, out, in, bias); }

  // `dtype`: of the input.
  void layout(Carver& carver, DType dtype, std::int64_t batch, std::int64_t rows) {
    if (!lora.empty()) u = carver.take(dtype, batch, rows, adapter_columns(lora));
  }

  bool trained() const {
    for (const LoraBranch& branch : lora) {
      if (branch.trained()) return true;
    }
    return false;
  }

  // y = linear(x).
  void forward(Ops& ops, ConstView x, View y, Pass pass = Pass::kForward) const {
    ops.linear({.x = x, .weight = weight, .lora = lora, .u = u, .u_known = pass == Pass::kRecompute, .y = y});
  }

  // dx = or += gradient through weight and adapters; adapter gradients accumulate. Empty dx: adapters only.
  void backward(Ops& ops, ConstView dy, ConstView x, View dx, Accumulate accumulate = Accumulate::kNo) const {
    if (!dx && !trained()) return;
    ops.linear_backward({.dy = dy, .x = x, .weight = weight, .lora = lora, .u = u, .dx = dx, .accumulate = accumulate});
  }
};

}  // namespace squareq
