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

}  // namespace

void LoadedWeights::linear(const std::string& name, Weight& slot, std::int64_t out, std::int64_t in, bool bias) {
  slot = {.values = load(name + ".weight", out, in)};
  if (bias) slot.bias = load(name + ".bias", 1, out);
}

void LoadedWeights::tensor(const std::string& name, ConstView& slot, std::int64_t rows, std::int64_t cols) {
  slot = load(name, rows, cols);
}

ConstView LoadedWeights::load(const std::string& name, std::int64_t rows, std::int64_t cols) {
  const std::vector<std::int64_t> shape = checkpoint_.shape(name);
  if (!fits(shape, rows, cols)) {
    throw FormatError({.where = checkpoint_.path() + ": tensor '" + name + "'",
                       .found = "shape " + shape_text(shape),
                       .expected = rows == 1 ? "shape " + shape_text({cols})
                                             : std::to_string(rows) + " rows of " + std::to_string(cols) + " values"});
  }
  const std::vector<float> values = checkpoint_.read_f32(name);
  const Buffer& memory = memory_.emplace_back(device_.allocate(values.size() * sizeof(float)));
  const View view(memory.get(), DType::F32, 1, rows, cols);
  device_.upload(values.data(), view);
  return view;
}

}  // namespace squareq
