#include "model/sequence.h"

#include <cmath>

namespace squareq {
namespace {

void append_grid(std::vector<Position>& positions, double first, const Grid& grid) {
  for (std::int64_t row = 0; row < grid.rows; ++row) {
    for (std::int64_t col = 0; col < grid.cols; ++col) {
      positions.push_back({first, static_cast<double>(row), static_cast<double>(col)});
    }
  }
}

}  // namespace

Sequence make_sequence(std::int64_t text_tokens, const Grid& image, const std::vector<Grid>& references) {
  Sequence s;
  s.text = text_tokens;
  s.image = image.tokens();
  s.output = s.image;
  s.positions.assign(static_cast<std::size_t>(text_tokens), Position{});
  append_grid(s.positions, 0.0, image);
  for (const Grid& grid : references) {
    s.reference += grid.tokens();
    append_grid(s.positions, 1.0, grid);
  }
  return s;
}

void rotary_table(const std::vector<Position>& positions, const std::array<std::int64_t, 3>& axes, double theta,
                  std::vector<float>& cosine, std::vector<float>& sine) {
  cosine.clear();
  sine.clear();
  for (const Position& position : positions) {
    for (std::size_t axis = 0; axis < axes.size(); ++axis) {
      for (std::int64_t pair = 0; pair < axes[axis] / 2; ++pair) {
        const double exponent = -2.0 * static_cast<double>(pair) / static_cast<double>(axes[axis]);
        const double angle = position[axis] * std::pow(theta, exponent);
        cosine.push_back(static_cast<float>(std::cos(angle)));
        sine.push_back(static_cast<float>(std::sin(angle)));
      }
    }
  }
}

}  // namespace squareq
