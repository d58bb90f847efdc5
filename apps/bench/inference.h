// Rates of what surrounds training: text encoder, autoencoder, sampling.
#pragma once

#include "apps/bench/speed.h"

namespace squareq::bench {

// T5 from a slab: one prompt of `text` random tokens with all weights on the device; and, if there is a budget, within
// that, where the same has to come out.
int run_t5(const SpeedOptions& options);
// The autoencoder of FLUX.1 with random weights: a picture of 16 rows x 16 cols pixels per image token, encoded and
// decoded, in tiles where it is large (engine/tiles.h); host copies included.
int run_vae(const SpeedOptions& options);
// Euler steps of a whole transformer on random conditions; `repeats` of them, the median counts.
int run_sampling(const SpeedOptions& options);

}  // namespace squareq::bench
