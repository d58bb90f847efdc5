#include "engine/slab_store.h"

#include "kernels/base/error.h"

namespace squareq {
namespace {

class SlabBinder : public WeightVisitor {
 public:
  explicit SlabBinder(const Slab& slab) : slab_(slab) {}

  void linear(const std::string& name, Weight& slot, std::int64_t out, std::int64_t in, bool bias) override {
    slot = slab_.weight(name);
    check(name + ".weight", slot.values, out, in);
    if (bias != static_cast<bool>(slot.bias)) {
      fail(name + ".bias", slot.bias ? "a bias" : "no bias", bias ? "a bias" : "no bias");
    }
  }

  void tensor(const std::string& name, ConstView& slot, std::int64_t rows, std::int64_t cols) override {
    slot = slab_.vector(name);
    check(name, slot, rows, cols);
  }

 private:
  void check(const std::string& name, const ConstView& view, std::int64_t rows, std::int64_t cols) const {
    if (view.rows == rows && view.cols == cols) return;
    const auto shape = [](std::int64_t r, std::int64_t c) {
      return "shape [" + std::to_string(r) + ", " + std::to_string(c) + "]";
    };
    fail(name, shape(view.rows, view.cols), shape(rows, cols));
  }

  [[noreturn]] void fail(const std::string& name, const std::string& found, const std::string& expected) const {
    throw FormatError({.where = slab_.path() + ": tensor '" + name + "'",
                       .found = found,
                       .expected = expected,
                       .advice = "rebuild the slab with squareq-slab build"});
  }

  const Slab& slab_;
};

}  // namespace

void SlabStore::acquire(const Stage& stage) {
  if (verified_.insert(stage.id).second) slab_.verify_block(stage.id);
  SlabBinder binder(slab_);
  stage.weights(binder);
}

}  // namespace squareq
