// The tokens of one forward pass: text first, then the noisy image, then reference images. Positions are explicit, one
// triple (axis 0, row, column) per token, so nothing else decides where a token sits.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace squareq {

using Position = std::array<double, 3>;

struct Grid {  // packed latent: one token for each 2 x 2 latent pixels
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t tokens() const { return rows * cols; }
};

struct Sequence {
  std::int64_t text = 0;            // tokens
  std::int64_t image = 0;           // noisy tokens; they carry the loss
  std::int64_t reference = 0;       // clean tokens of reference images
  std::vector<Position> positions;  // [total()]
  // Tokens for which the network gives an output: the first `output` after the text.
  std::int64_t output = 0;

  std::int64_t total() const { return text + image + reference; }
};

// Text at (0, 0, 0), image token n at (0, row, col), tokens of every reference image at (1, row, col).
// Spec: BFL's FLUX.1 and FLUX.1 Kontext position ids.
Sequence make_sequence(std::int64_t text_tokens, const Grid& image, const std::vector<Grid>& references = {});

// Cosines and sines of the rotary embedding: out[t * (D / 2) + p] for pair p of token t. Axis a owns axes[a] / 2 pairs
// with frequencies theta^(-2j / axes[a]); angles in float64.
void rotary_table(const std::vector<Position>& positions, const std::array<std::int64_t, 3>& axes, double theta,
                  std::vector<float>& cosine, std::vector<float>& sine);

}  // namespace squareq
