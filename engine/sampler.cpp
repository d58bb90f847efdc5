#include "engine/sampler.h"

namespace squareq {

void euler_sample(FluxEngine& engine, std::span<const FluxEngine::Sample> conditions, std::span<const double> sigmas,
                  std::span<float> latents, const std::function<void(std::size_t)>& after_step) {
  const std::size_t size = latents.size() / conditions.size();
  for (std::size_t step = 0; step + 1 < sigmas.size(); ++step) {
    for (std::size_t b = 0; b < conditions.size(); ++b) {
      FluxEngine::Sample sample = conditions[b];
      sample.img = latents.subspan(b * size, size);
      sample.sigma = sigmas[step];
      engine.set_sample(static_cast<std::int64_t>(b), sample);
    }
    engine.forward();
    const std::vector<float> velocity = engine.prediction();
    const auto change = static_cast<float>(sigmas[step + 1] - sigmas[step]);
    for (std::size_t i = 0; i < latents.size(); ++i) latents[i] += change * velocity[i];
    after_step(step + 1);
  }
}

}  // namespace squareq
