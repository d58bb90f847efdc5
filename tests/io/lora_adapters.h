// Adapters for tests, and what they do, computed plainly.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "io/lora_file.h"
#include "io/lora_layout.h"
#include "io/tensor_names.h"
#include "tests/catch.h"
#include "tests/support.h"

namespace squareq::test {

inline FluxShape small() {
  return {.hidden = 8,
          .heads = 2,
          .head_dim = 4,
          .axes = {0, 2, 2},
          .double_blocks = 2,
          .single_blocks = 1,
          .mlp_hidden = 24,
          .context_in = 6,
          .vector_in = 5,
          .in_channels = 4,
          .out_channels = 4,
          .guidance = true};
}

inline std::vector<float> numbers(std::int64_t count, std::uint32_t stream) {
  std::vector<float> values(static_cast<std::size_t>(count));
  fill_random(values, stream);
  return values;
}

inline LoraAdapter adapter(const std::string& linear, std::int64_t row, std::int64_t rows, std::int64_t in,
                           std::int64_t rank, float alpha, std::uint32_t stream) {
  return {linear, row, rows, in, rank, alpha, numbers(rank * in, stream), numbers(rows * rank, stream + 1)};
}

// What the adapters of a file add to a linear layer, [out, in].
inline std::vector<float> delta(const std::vector<LoraAdapter>& adapters, const LinearSize& linear) {
  std::vector<float> sum(static_cast<std::size_t>(linear.out * linear.in));
  for (const LoraAdapter& a : adapters) {
    if (a.linear != linear.name) continue;
    for (std::int64_t o = 0; o < a.rows; ++o) {
      for (std::int64_t r = 0; r < a.rank; ++r) {
        const float up = a.scale() * a.up[static_cast<std::size_t>(o * a.rank + r)];
        for (std::int64_t i = 0; i < a.in; ++i) {
          sum[static_cast<std::size_t>((a.row_begin + o) * a.in + i)] +=
              up * a.down[static_cast<std::size_t>(r * a.in + i)];
        }
      }
    }
  }
  return sum;
}

inline void check_same_deltas(const std::vector<LoraAdapter>& a, const std::vector<LoraAdapter>& b,
                              const FluxShape& shape, double tolerance) {
  for (const LinearSize& linear : flux_linears(shape)) {
    INFO(linear.name);
    CHECK(relative_l2(delta(a, linear), delta(b, linear)) <= tolerance);
  }
}

// Arranges and writes in kohya's naming, if nothing else is said.
inline void save(const std::string& path, const std::vector<LoraAdapter>& adapters, const FluxShape& shape, DType dtype,
                 const std::map<std::string, std::string>& metadata = {}, LoraNaming naming = LoraNaming::kKohya) {
  write_lora(path, arrange_adapters(adapters, shape, naming), shape, naming, dtype, metadata);
}

}  // namespace squareq::test
