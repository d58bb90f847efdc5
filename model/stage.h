// A network as the engine sees it: a list of stages run up in forward and down in backward. A stage names the weights
// it needs (one block of the slab), what its forward saves for its backward, and its two directions. The engine
// brings the weights, gives the memory and knows nothing else, so it runs any network described this way.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/base/carver.h"
#include "kernels/base/view.h"
#include "kernels/ops.h"

namespace squareq {

// Enumerates the weights of a stage in order. One function per stage type calls it, and serves both to list the
// tensors and to bind views of them.
class WeightVisitor {
 public:
  virtual ~WeightVisitor() = default;
  // A linear layer `name`.weight [out, in] with `name`.bias [out] if asked.
  virtual void linear(const std::string& name, Weight& slot, std::int64_t out, std::int64_t in, bool bias) = 0;
  // A float tensor of one or two dimensions, seen as [1, rows, cols] ([n] is [1, 1, n]).
  virtual void tensor(const std::string& name, ConstView& slot, std::int64_t rows, std::int64_t cols) = 0;
};

enum class Pass : std::uint8_t {
  kForward,    // compute everything
  kRecompute,  // again, for a backward that follows: what lasts is there, and what only later stages read may be
               // skipped
};

// Floating-point operations of a forward, a multiply-add counting as two. Backward does the products once more and
// attention two and a half times, since frozen weights have no gradient.
struct StageWork {
  double products = 0.0;  // with weights
  double attention = 0.0;

  double forward() const { return products + attention; }
  double backward() const { return products + 2.5 * attention; }
};

struct Stage {
  std::string id;  // of the slab block that holds the weights
  // True if backward may run from a second forward, false if the saved tensors must be kept from the first.
  bool recomputable = false;
  // False if backward has nothing to do and needs no weights.
  bool has_backward = true;
  bool weights_in_backward = true;  // false if backward reads none of them
  StageWork work;                   // of blocks; the rest takes no time to speak of
  std::function<void(WeightVisitor&)> weights;
  std::function<void(Carver&)> saved;  // carves what forward saves (and its scratch)
  // Carves what a recomputation does not compute again, which has memory of its own until backward: what is small, and
  // the result of attention if that is to last too. Of recomputable stages; may be empty.
  std::function<void(Carver&, bool attention)> lasting;
  std::function<void(Ops&, Pass)> forward;
  std::function<void(Ops&)> backward;

  bool reads_weights_in_backward() const { return has_backward && weights_in_backward; }
};

}  // namespace squareq
