#include "engine/loaded_weights.h"

#include "kernels/base/error.h"

namespace squareq {
namespace {

bool fits(const std::vector<std::int64_t>& shape, std::int64_t rows, std::int64_t cols) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  if (shape.size() == 1) return rows == 1 && count == cols;
  return !shape.empty() && shape.front() == rows && count == rows * cols;
}

class Binder : public WeightVisitor {
 public:
  Binder(const Checkpoint& checkpoint, Carver& carver, std::vector<std::pair<std::string, View>>& bound)
      : checkpoint_(checkpoint), carver_(carver), bound_(bound) {}

  void linear(const std::string& name, Weight& slot, std::int64_t out, std::int64_t in, bool bias) override {
    slot = {.values = take(name + ".weight", out, in)};
    if (bias) slot.bias = take(name + ".bias", 1, out);
  }

  void tensor(const std::string& name, ConstView& slot, std::int64_t rows, std::int64_t cols) override {
    slot = take(name, rows, cols);
  }

 private:
  View take(const std::string& name, std::int64_t rows, std::int64_t cols) {
    const std::vector<std::int64_t> shape = checkpoint_.shape(name);
    if (!fits(shape, rows, cols)) {
      throw FormatError({.where = checkpoint_.path() + ": tensor '" + name + "'",
                         .found = "shape " + shape_text(shape),
                         .expected = rows == 1
                                         ? "shape " + shape_text({cols})
                                         : std::to_string(rows) + " rows of " + std::to_string(cols) + " values"});
    }
    return bound_.emplace_back(name, carver_.take(DType::F32, 1, rows, cols)).second;
  }

  const Checkpoint& checkpoint_;
  Carver& carver_;
  std::vector<std::pair<std::string, View>>& bound_;
};

}  // namespace

LoadedWeights::LoadedWeights(const Checkpoint& checkpoint, std::function<void(WeightVisitor&)> network)
    : checkpoint_(checkpoint), network_(std::move(network)) {
  for (const std::string& path : checkpoint.files()) files_.emplace_back(path, RandomAccessFile::Mode::kCached);
}

void LoadedWeights::layout(Carver& carver) {
  bound_.clear();
  Binder binder(checkpoint_, carver, bound_);
  network_(binder);
}

void LoadedWeights::upload(Device& device) const {
  for (const RandomAccessFile& file : files_) file.check_unchanged();
  for (const auto& [name, view] : bound_) device.upload(checkpoint_.read_f32(name).data(), view);
}

}  // namespace squareq
