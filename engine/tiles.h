// Pictures too large for one pass through the autoencoder, in overlapping tiles whose seams are blended.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace squareq {

// Cuts a picture [channels, height * width] into tiles of one size, and puts results for them together. A tile's share
// in a position falls linearly towards those of its edges that lie inside the picture; the shares of all tiles in a
// position add up to 1. Group norms and attention of the autoencoder see one tile at a time, so the result is close
// to that of the whole picture, not equal to it. A picture of one tile comes back bit for bit.
class Tiling {
 public:
  // Tiles of at most `largest` along each axis that overlap by at least a quarter of that. They begin at multiples of
  // `unit`, which divides height, width and largest.
  Tiling(std::int64_t height, std::int64_t width, std::int64_t largest, std::int64_t unit);

  std::int64_t height() const { return rows_.size; }  // of a tile
  std::int64_t width() const { return cols_.size; }
  std::int64_t count() const { return rows_.tiles() * cols_.tiles(); }

  // work(tile) is the result for each tile in turn. The input has one value for in_unit x in_unit pixels, the result
  // one for out_unit x out_unit (1, or the pixels of a latent pixel).
  std::vector<float> map(const std::vector<float>& in, std::int64_t in_unit, std::int64_t out_unit,
                         const std::function<std::vector<float>(const std::vector<float>& tile)>& work) const;

 private:
  struct Axis {
    std::int64_t length = 0;
    std::int64_t size = 0;             // of a tile
    std::vector<std::int64_t> begins;  // of the tiles

    Axis(std::int64_t length, std::int64_t largest, std::int64_t unit);
    std::int64_t tiles() const { return static_cast<std::int64_t>(begins.size()); }
    // Of a tile in each of its positions, `unit` pixels each.
    std::vector<float> shares(std::size_t tile, std::int64_t unit) const;
  };

  Axis rows_, cols_;
};

}  // namespace squareq
