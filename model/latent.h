// Latents between autoencoder and transformer, on the host: normalisation, sampling, and the packing of 2 x 2 latent
// pixels into one token. Everything holds B samples one after the other; sizes follow from the spans.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/base/shapes.h"

namespace squareq {

// moments [B, 2 z, n] (means, then logarithms of variances) to normalised latents [B, z, n] = scale * (mean - shift).
void latent_mean(const VaeShape& shape, std::int64_t batch, std::span<const float> moments, std::span<float> latent);

// The same for a sample: mean + exp(clamp(logvar, -30, 20) / 2) * noise, noise [B, z, n] standard normal.
void latent_sample(const VaeShape& shape, std::int64_t batch, std::span<const float> moments,
                   std::span<const float> noise, std::span<float> latent);

// Normalised latents to what the decoder reads: latent / scale + shift. `out` may be `latent`.
void latent_to_decoder(const VaeShape& shape, std::span<const float> latent, std::span<float> out);

// [B, C, height, width] to tokens [B, height / 2 * width / 2, 4 C], feature 4 c + 2 row + col; height and width even.
void pack_latent(std::span<const float> latent, std::int64_t channels, std::int64_t height, std::int64_t width,
                 std::span<float> tokens);
// The inverse; height and width are those of the latent.
void unpack_latent(std::span<const float> tokens, std::int64_t channels, std::int64_t height, std::int64_t width,
                   std::span<float> latent);

}  // namespace squareq
