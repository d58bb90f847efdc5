#include "engine/evaluation.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/base/random.h"

namespace squareq {
namespace {

// Quantile of the standard normal distribution by bisection of its distribution function.
double normal_quantile(double p) {
  double low = -10.0;
  double high = 10.0;
  for (int i = 0; i < 80; ++i) {
    const double middle = 0.5 * (low + high);
    (0.5 * std::erfc(-middle / std::numbers::sqrt2) < p ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

// The sum over draws of one bucket, numbered sample x draws + draw.
double sum_over(FluxEngine& engine, const TrainingSet& data, const std::vector<std::int64_t>& indices,
                std::int64_t draws, double guidance) {
  FlowBatch flow(engine);
  const auto batch = static_cast<std::size_t>(engine.state().batch);
  std::int64_t loaded = -1;
  EncodedExample example;
  std::vector<float> noise;
  double sum = 0.0;
  for (std::size_t begin = 0; begin < indices.size(); begin += batch) {
    for (std::size_t slot = 0; slot < batch; ++slot) {
      const std::int64_t index = indices[std::min(begin + slot, indices.size() - 1)];  // what fills up does not count
      if (loaded != index / draws) {
        loaded = index / draws;
        example = data.load({.sample = static_cast<std::uint32_t>(loaded)});
      }
      noise.resize(example.latent.size());
      Random({.purpose = Purpose::kTest, .sample = static_cast<std::uint32_t>(index)}).fill_normal(noise);
      const double quantile = (static_cast<double>(index % draws) + 0.5) / static_cast<double>(draws);
      flow.set(static_cast<std::int64_t>(slot), {.example = example,
                                                 .noise = noise,
                                                 .sigma = 1.0 / (1.0 + std::exp(-normal_quantile(quantile))),
                                                 .guidance = guidance});
    }
    const std::vector<float> loss = flow.forward();
    for (std::size_t slot = 0; slot < std::min(batch, indices.size() - begin); ++slot) {
      sum += static_cast<double>(loss[slot]);
    }
  }
  return sum;
}

}  // namespace

double fixed_draw_loss(FluxEngine& engine, const TrainingSet& data, std::size_t first_sequence, std::int64_t draws,
                       double guidance) {
  const auto total = static_cast<std::int64_t>(data.samples.size()) * draws;
  double sum = 0.0;
  for (std::size_t bucket = 0; bucket < data.grids.size(); ++bucket) {
    std::vector<std::int64_t> indices;
    for (std::int64_t i = 0; i < total; ++i) {
      if (data.samples[static_cast<std::size_t>(i / draws)].bucket == bucket) indices.push_back(i);
    }
    engine.select(first_sequence + bucket);
    sum += sum_over(engine, data, indices, draws, guidance);
  }
  return sum / static_cast<double>(total);
}

}  // namespace squareq
