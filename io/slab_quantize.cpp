#include "io/slab_quantize.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

namespace squareq {
namespace {

// Sums run in four lanes, so that a vector unit can be used without regrouping them.
constexpr std::int64_t kLanes = 4;
using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));
using Doubles = double __attribute__((vector_size(kLanes * sizeof(double))));

float max_abs(const float* w, std::int64_t n) {
  // Bits of non-negative floats are ordered as the floats are, and integers may be compared in any order.
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < n; ++i) largest = std::max(largest, std::bit_cast<std::uint32_t>(w[i]) & 0x7FFFFFFFU);
  return std::bit_cast<float>(largest);
}

struct Lanes {
  Doubles difference{};
  Doubles source{};
  Doubles stored{};
  Doubles product{};
  Floats largest{};

  // The next kLanes weights and what is stored for them.
  void add(const float* w, const float* v) {
    Floats from;
    Floats to;
    std::memcpy(&from, w, sizeof(from));
    std::memcpy(&to, v, sizeof(to));
    const Floats e = to - from;
    const Floats magnitude = e < 0.0F ? -e : e;
    largest = magnitude > largest ? magnitude : largest;
    const Doubles error = __builtin_convertvector(e, Doubles);
    const Doubles x = __builtin_convertvector(from, Doubles);
    const Doubles y = __builtin_convertvector(to, Doubles);
    difference += error * error;
    source += x * x;
    stored += y * y;
    product += x * y;
  }

  QuantizationError total() const {
    QuantizationError sum;
    for (std::size_t i = 0; i < kLanes; ++i) {
      sum.add({difference[i], source[i], stored[i], product[i], largest[i]});
    }
    return sum;
  }
};

// Weights are taken in pieces that stay in the first-level cache.
constexpr std::int64_t kPiece = 512;

QuantizationError quantize_row(const float* w, std::int64_t cols, float scale, std::int8_t* q) {
  Lanes lanes;
  for (std::int64_t begin = 0; begin < cols; begin += kPiece) {
    const auto n = static_cast<std::size_t>(std::min(kPiece, cols - begin));
    const float* from = w + begin;
    std::int8_t* to = q + begin;
    std::array<float, kPiece> stored;
    for (std::size_t i = 0; i < n; ++i) {
      const float rounded = std::min(std::max(std::nearbyint(from[i] / scale), -127.0F), 127.0F);
      to[i] = static_cast<std::int8_t>(rounded);
      stored[i] = rounded * scale;
    }
    const std::size_t whole = n / kLanes * kLanes;
    for (std::size_t i = 0; i < whole; i += kLanes) lanes.add(from + i, stored.data() + i);
    if (whole < n) {
      std::array<float, kLanes> last_from{};
      std::array<float, kLanes> last_stored{};
      std::copy(from + whole, from + n, last_from.begin());
      std::copy(stored.data() + whole, stored.data() + n, last_stored.begin());
      lanes.add(last_from.data(), last_stored.data());
    }
  }
  return lanes.total();
}

}  // namespace

void QuantizationError::add(const QuantizationError& other) {
  difference += other.difference;
  source += other.source;
  stored += other.stored;
  product += other.product;
  max_abs = std::max(max_abs, other.max_abs);
}

double QuantizationError::relative_l2() const { return source > 0.0 ? std::sqrt(difference / source) : 0.0; }

double QuantizationError::cosine() const {
  if (!(source > 0.0)) return 1.0;
  return stored > 0.0 ? product / (std::sqrt(source) * std::sqrt(stored)) : 0.0;
}

QuantizationError quantize_rows(const float* w, std::int64_t rows, std::int64_t cols, std::int8_t* q, float* scales) {
  QuantizationError error;
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* row = w + r * cols;
    const float quotient = max_abs(row, cols) / 127.0F;
    const float scale = quotient > 0.0F ? quotient : 1.0F;
    scales[r] = scale;
    error.add(quantize_row(row, cols, scale, q + r * cols));
  }
  return error;
}

}  // namespace squareq
