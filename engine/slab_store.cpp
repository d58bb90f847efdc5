#include "engine/slab_store.h"

#include "kernels/base/error.h"

namespace squareq {
namespace {

class SlabBinder : public WeightVisitor {
 public:
  // `moved`: from where the block is mapped to where it is used.
  SlabBinder(const Slab& slab, std::ptrdiff_t moved) : slab_(slab), moved_(moved) {}

  void linear(const std::string& name, Weight& slot, std::int64_t out, std::int64_t in, bool bias) override {
    slot = slab_.weight(name);
    check(name + ".weight", slot.values, out, in);
    if (bias != static_cast<bool>(slot.bias)) {
      fail(name + ".bias", slot.bias ? "a bias" : "no bias", bias ? "a bias" : "no bias");
    }
    for (ConstView* view : {&slot.values, &slot.scales, &slot.bias}) move(*view);
  }

  void tensor(const std::string& name, ConstView& slot, std::int64_t rows, std::int64_t cols) override {
    slot = slab_.vector(name);
    check(name, slot, rows, cols);
    move(slot);
  }

 private:
  void move(ConstView& view) const {
    if (view) view.data += moved_;
  }

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
  std::ptrdiff_t moved_;
};

}  // namespace

void SlabStore::layout(Carver& carver, const std::vector<Stage>& stages) {
  if (device_.reads_host_memory()) return;
  for (const Stage& stage : stages) {
    const auto bytes = static_cast<std::int64_t>(slab_.block(stage.id).bytes);
    resident_[stage.id] = carver.take(DType::U8, 1, 1, bytes);
  }
}

void SlabStore::acquire(const Stage& stage) {
  const bool first = loaded_.insert(stage.id).second;
  if (first) slab_.verify_block(stage.id);
  std::ptrdiff_t moved = 0;
  if (const auto resident = resident_.find(stage.id); resident != resident_.end()) {
    const std::span<const std::byte> block = slab_.bytes(slab_.block(stage.id));
    if (first) device_.upload(block.data(), resident->second);
    moved = resident->second.data - block.data();
  }
  SlabBinder binder(slab_, moved);
  stage.weights(binder);
}

void SlabStore::bind_shapes(const Stage& stage) const {
  SlabBinder binder(slab_, 0);
  stage.weights(binder);
}

}  // namespace squareq
