// Sizes of the four networks. Everything that computes or lays out takes its numbers from here, nothing is
// hard-coded. Read from a model's own files by io/checkpoint; defaults are those fixed by the architecture.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace squareq {

struct FluxShape {
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
  std::int64_t head_dim = 0;
  std::array<std::int64_t, 3> axes{};  // RoPE features per position axis; sums to head_dim, each even
  std::int64_t double_blocks = 0;
  std::int64_t single_blocks = 0;
  std::int64_t mlp_hidden = 0;
  std::int64_t context_in = 0;  // width of the T5 states
  std::int64_t vector_in = 0;   // width of the pooled CLIP state
  std::int64_t in_channels = 0;
  std::int64_t out_channels = 0;
  bool guidance = false;
  double theta = 10000.0;

  static constexpr std::int64_t kTimeEmbedding = 256;
};

struct T5Shape {
  std::int64_t vocab = 0;
  std::int64_t width = 0;
  std::int64_t layers = 0;
  std::int64_t heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t mlp_hidden = 0;
  std::int64_t buckets = 32;
  std::int64_t max_distance = 128;
  double epsilon = 1e-6;
};

struct ClipShape {
  std::int64_t vocab = 0;
  std::int64_t width = 0;
  std::int64_t layers = 0;
  std::int64_t heads = 0;
  std::int64_t mlp_hidden = 0;
  std::int64_t positions = 77;
  std::int64_t eos = -1;  // id whose first position gives the pooled state; -1: the largest id of the sequence
  double epsilon = 1e-5;
};

struct VaeShape {
  std::int64_t width = 0;                 // channels of the first level
  std::vector<std::int64_t> multipliers;  // channels of level l = width * multipliers[l]
  std::int64_t resnets = 0;               // per encoder level; the decoder has one more
  std::int64_t latent_channels = 16;
  std::int64_t groups = 32;
  double scale = 0.3611;
  double shift = 0.1159;

  std::int64_t factor() const { return std::int64_t{1} << (multipliers.size() - 1); }  // pixels per latent
};

}  // namespace squareq
