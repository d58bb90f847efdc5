#include "engine/tiles.h"

#include <algorithm>
#include <stdexcept>

namespace squareq {

Tiling::Axis::Axis(std::int64_t length_in, std::int64_t largest, std::int64_t unit)
    : length(length_in), size(std::min(length_in, largest)) {
  if (length % unit != 0 || largest % unit != 0) throw std::logic_error("Tiling: sides are multiples of the unit");
  const std::int64_t most = size - largest / 4;  // from the begin of a tile to that of the next
  const std::int64_t tiles = length == size ? 1 : (length - size + most - 1) / most + 1;
  for (std::int64_t i = 0; i < tiles; ++i) {
    begins.push_back(tiles == 1 ? 0 : (length - size) / unit * i / (tiles - 1) * unit);
  }
}

std::vector<float> Tiling::Axis::shares(std::size_t tile, std::int64_t unit) const {
  // Of a tile before normalisation; 0 outside of it.
  const auto height = [&](std::size_t t, std::int64_t pixel) {
    const std::int64_t begin = begins[t];
    const std::int64_t end = begin + size;
    if (pixel < begin || pixel >= end) return 0.0;
    double share = 1.0;
    if (t > 0) {
      const auto overlap = static_cast<double>(begins[t - 1] + size - begin);
      share = std::min(share, (static_cast<double>(pixel - begin) + 0.5) / overlap);
    }
    if (t + 1 < begins.size()) {
      const auto overlap = static_cast<double>(end - begins[t + 1]);
      share = std::min(share, (static_cast<double>(end - pixel) - 0.5) / overlap);
    }
    return share;
  };
  std::vector<float> result;
  for (std::int64_t pixel = begins[tile]; pixel < begins[tile] + size; pixel += unit) {
    double sum = 0.0;
    for (std::size_t t = 0; t < begins.size(); ++t) sum += height(t, pixel);
    result.push_back(static_cast<float>(height(tile, pixel) / sum));
  }
  return result;
}

Tiling::Tiling(std::int64_t height, std::int64_t width, std::int64_t largest, std::int64_t unit)
    : rows_(height, largest, unit), cols_(width, largest, unit) {}

std::vector<float> Tiling::map(const std::vector<float>& in, std::int64_t in_unit, std::int64_t out_unit,
                               const std::function<std::vector<float>(const std::vector<float>&)>& work) const {
  const auto pixels = static_cast<std::size_t>(rows_.length * cols_.length);
  const std::size_t in_channels = in.size() / (pixels / static_cast<std::size_t>(in_unit * in_unit));
  std::vector<float> out;
  std::vector<float> tile;
  for (std::size_t row = 0; row < rows_.begins.size(); ++row) {
    const std::vector<float> row_shares = rows_.shares(row, out_unit);
    for (std::size_t col = 0; col < cols_.begins.size(); ++col) {
      const std::vector<float> col_shares = cols_.shares(col, out_unit);
      // Calls visit(c, r, first, i): row r of channel c of the tile starts at `first` in the whole, at i in the tile.
      const auto each_row = [&](std::size_t channels, std::int64_t unit, const auto& visit) {
        const std::int64_t height = rows_.size / unit;
        std::int64_t i = 0;
        for (std::size_t c = 0; c < channels; ++c) {
          for (std::int64_t r = 0; r < height; ++r, i += cols_.size / unit) {
            const std::int64_t line =
                static_cast<std::int64_t>(c) * (rows_.length / unit) + rows_.begins[row] / unit + r;
            visit(r, line * (cols_.length / unit) + cols_.begins[col] / unit, i);
          }
        }
      };
      tile.resize(in_channels * static_cast<std::size_t>(rows_.size / in_unit * (cols_.size / in_unit)));
      each_row(in_channels, in_unit, [&](std::int64_t, std::int64_t whole, std::int64_t part) {
        std::copy_n(in.begin() + whole, cols_.size / in_unit, tile.begin() + part);
      });
      const std::vector<float> result = work(tile);
      const std::size_t out_channels = result.size() / (row_shares.size() * col_shares.size());
      out.resize(out_channels * (pixels / static_cast<std::size_t>(out_unit * out_unit)));
      each_row(out_channels, out_unit, [&](std::int64_t r, std::int64_t whole, std::int64_t part) {
        for (std::size_t i = 0; i < col_shares.size(); ++i) {
          const float share = row_shares[static_cast<std::size_t>(r)] * col_shares[i];
          out[static_cast<std::size_t>(whole) + i] += share * result[static_cast<std::size_t>(part) + i];
        }
      });
    }
  }
  return out;
}

}  // namespace squareq
