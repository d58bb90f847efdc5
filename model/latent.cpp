#include "model/latent.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace squareq {
namespace {

// latent[i] = scale * (value(index of the mean, index of the variance, i) - shift)
template <class Value>
void normalise(const VaeShape& shape, std::int64_t batch, std::span<const float> moments, std::span<float> latent,
               Value value) {
  if (batch < 1 || moments.size() != 2 * latent.size() || latent.size() % static_cast<std::size_t>(batch) != 0) {
    throw std::logic_error("latents and moments differ in size");
  }
  const std::size_t size = latent.size() / static_cast<std::size_t>(batch);
  for (std::size_t i = 0; i < latent.size(); ++i) {
    const std::size_t mean = i / size * 2 * size + i % size;
    latent[i] = static_cast<float>(shape.scale * (value(moments[mean], moments[mean + size], i) - shape.shift));
  }
}

// Calls f(index in the latent, index in the tokens) for every element.
template <class F>
void for_each_packed(std::size_t size, std::int64_t channels, std::int64_t height, std::int64_t width, F f) {
  const std::int64_t sample = channels * height * width;
  if (sample < 1 || height % 2 != 0 || width % 2 != 0 || static_cast<std::int64_t>(size) % sample != 0) {
    throw std::logic_error("latent size does not fit its tokens");
  }
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(size); ++i) {
    const std::int64_t x = i % width;
    const std::int64_t y = i / width % height;
    const std::int64_t c = i / (width * height) % channels;
    const std::int64_t token = y / 2 * (width / 2) + x / 2;
    const std::int64_t packed = i / sample * sample + token * 4 * channels + 4 * c + 2 * (y % 2) + x % 2;
    f(static_cast<std::size_t>(i), static_cast<std::size_t>(packed));
  }
}

}  // namespace

void latent_mean(const VaeShape& shape, std::int64_t batch, std::span<const float> moments, std::span<float> latent) {
  normalise(shape, batch, moments, latent, [](float mean, float, std::size_t) { return static_cast<double>(mean); });
}

void latent_sample(const VaeShape& shape, std::int64_t batch, std::span<const float> moments,
                   std::span<const float> noise, std::span<float> latent) {
  if (noise.size() != latent.size()) throw std::logic_error("latents and noise differ in size");
  normalise(shape, batch, moments, latent, [&](float mean, float log_variance, std::size_t i) {
    return mean + std::exp(std::clamp(static_cast<double>(log_variance), -30.0, 20.0) / 2.0) * noise[i];
  });
}

void latent_to_decoder(const VaeShape& shape, std::span<const float> latent, std::span<float> out) {
  if (latent.size() != out.size()) throw std::logic_error("latents differ in size");
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(latent[i] / shape.scale + shape.shift);
}

void pack_latent(std::span<const float> latent, std::int64_t channels, std::int64_t height, std::int64_t width,
                 std::span<float> tokens) {
  if (latent.size() != tokens.size()) throw std::logic_error("latents and tokens differ in size");
  for_each_packed(latent.size(), channels, height, width,
                  [&](std::size_t from, std::size_t to) { tokens[to] = latent[from]; });
}

void unpack_latent(std::span<const float> tokens, std::int64_t channels, std::int64_t height, std::int64_t width,
                   std::span<float> latent) {
  if (latent.size() != tokens.size()) throw std::logic_error("latents and tokens differ in size");
  for_each_packed(latent.size(), channels, height, width,
                  [&](std::size_t to, std::size_t from) { latent[to] = tokens[from]; });
}

}  // namespace squareq
