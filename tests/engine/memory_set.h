// Training sets that lie in memory.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "engine/training_set.h"
#include "tests/support.h"

namespace squareq::test {

// Random, of the sizes that tiny_shape() asks for, with 5 text tokens.
inline EncodedExample random_example(const Grid& grid, std::uint32_t stream) {
  EncodedExample example{.latent = std::vector<float>(static_cast<std::size_t>(grid.tokens() * 16)),
                         .text = std::vector<float>(5 * 48),
                         .pooled = std::vector<float>(24),
                         .token_weights = {}};
  fill_random(example.latent, 10 * stream);
  fill_random(example.text, 10 * stream + 1);
  fill_random(example.pooled, 10 * stream + 2);
  return example;
}

inline TrainingSet memory_set(std::vector<Grid> grids, std::vector<DrawnSample> samples,
                              std::vector<EncodedExample> examples) {
  const auto shared = std::make_shared<const std::vector<EncodedExample>>(std::move(examples));
  return {.grids = std::move(grids),
          .text_tokens = 5,
          .pictures = static_cast<std::int64_t>(samples.size()),
          .samples = std::move(samples),
          .load = [shared](const Draw& draw) { return shared->at(draw.sample); }};
}

}  // namespace squareq::test
