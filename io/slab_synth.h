// Random weights at any size.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "io/slab_writer.h"

namespace squareq {

// Value k of a tensor is a function of seed, tensor name and k. Four 16-bit pieces of a hash are added, which comes
// close to a normal distribution (largest value 3.46 deviations) at a fraction of its cost. Rounded to BF16.
class SyntheticSource : public WeightSource {
 public:
  SyntheticSource(const SlabShape& shape, std::uint64_t seed);

  std::string key() const override;
  DType dtype(const std::string& tensor) const override;
  void read(const std::string& tensor, std::int64_t row_begin, std::int64_t rows, float* out) const override;

 private:
  struct Tensor {
    std::int64_t cols = 1;
    std::uint64_t stream = 0;
    float mean = 0.0F;
    float factor = 0.0F;
  };

  std::uint64_t seed_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace squareq
