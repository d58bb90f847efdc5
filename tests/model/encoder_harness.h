// What the tests of CLIP, T5 and the autoencoder share.
#pragma once

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "io/safetensors.h"
#include "kernels/base/carver.h"
#include "kernels/ops.h"
#include "model/stage.h"
#include "tests/catch.h"
#include "tests/support.h"
#include "tests/support_spec_weights.h"

namespace squareq::test {

// Binds what values() gives, in memory of the host.
class HostWeights : public WeightVisitor {
 public:
  void linear(const std::string& name, Weight& slot, std::int64_t out, std::int64_t in, bool bias) override {
    slot = {};
    tensor(name + ".weight", slot.values, out, in);
    if (bias) tensor(name + ".bias", slot.bias, 1, out);
  }
  void tensor(const std::string& name, ConstView& slot, std::int64_t rows, std::int64_t cols) override {
    const std::vector<float>& kept = memory_[name] = values(name, rows, cols);
    REQUIRE(kept.size() == static_cast<std::size_t>(rows * cols));
    slot = ConstView(reinterpret_cast<const std::byte*>(kept.data()), DType::F32, 1, rows, cols);
  }

  std::size_t tensors() const { return memory_.size(); }
  std::size_t parameters() const {
    std::size_t sum = 0;
    for (const auto& [name, values] : memory_) sum += values.size();
    return sum;
  }

 private:
  virtual std::vector<float> values(const std::string& name, std::int64_t rows, std::int64_t cols) const = 0;

  std::map<std::string, std::vector<float>> memory_;
};

// Weights by the deterministic rule of support_spec_weights.h: embeddings 1, gains of norms, biases 0.1, all other
// matrices and convolutions 1 / sqrt(inputs of an output).
class EncoderSpecWeights : public HostWeights {
 private:
  std::vector<float> values(const std::string& name, std::int64_t rows, std::int64_t cols) const override {
    if (name.ends_with(".bias")) return spec_values(name, cols, 0.1);
    if (rows == 1) return spec_gains(name, cols);
    const bool table = contains(name, "embedding") || contains(name, "shared") || contains(name, "relative");
    return spec_values(name, rows * cols, table ? 1.0 : 1.0 / std::sqrt(static_cast<double>(cols)));
  }
};

// Weights of a checkpoint.
class CheckpointWeights : public HostWeights {
 public:
  explicit CheckpointWeights(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

 private:
  std::vector<float> values(const std::string& name, std::int64_t, std::int64_t) const override {
    return checkpoint_.read_f32(name);
  }

  const Checkpoint& checkpoint_;
};

inline View view_of(std::vector<float>& values, std::int64_t batch, std::int64_t rows, std::int64_t cols) {
  REQUIRE(values.size() == static_cast<std::size_t>(batch * rows * cols));
  return {reinterpret_cast<std::byte*>(values.data()), DType::F32, batch, rows, cols};
}

inline std::vector<float> values_of(const ConstView& view) { return {view.f32(), view.f32() + view.count()}; }

// Runs a layout function without and with memory.
template <class Layout>
std::vector<float> carve(Layout layout) {
  Carver measure;
  layout(measure);
  std::vector<float> memory(measure.used() / sizeof(float));
  Carver carver(reinterpret_cast<std::byte*>(memory.data()), measure.used());
  layout(carver);
  return memory;
}

inline std::vector<std::int32_t> read_ids(const SafetensorsFile& file, const std::string& name) {
  std::vector<std::int32_t> ids;
  for (const float id : file.read_f32(name)) ids.push_back(static_cast<std::int32_t>(id));
  return ids;
}

inline bool close(double value, double expected) { return std::fabs(value - expected) <= 1e-4; }

}  // namespace squareq::test
