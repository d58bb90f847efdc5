// Tensors for tests of operations, and derivatives by central differences of naive float64 formulae.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/view.h"
#include "tests/support.h"

namespace squareq::test {

using Doubles = std::vector<double>;

enum class Memory { kContiguous, kSlice };

// Random float32 [batch, rows, cols] that owns its memory. A slice lies inside a larger tensor whose other elements
// must stay as they are.
class Tensor {
 public:
  Tensor(std::int64_t batch, std::int64_t rows, std::int64_t cols, std::uint32_t stream = 0,
         Memory memory = Memory::kContiguous, float standard_deviation = 1.0F) {
    const bool slice = memory == Memory::kSlice;
    const std::int64_t all_rows = rows + (slice ? 3 : 0);
    const std::int64_t all_cols = cols + (slice ? 7 : 0);
    values_.resize(static_cast<std::size_t>(batch * all_rows * all_cols));
    fill_random(values_, stream, standard_deviation);
    const View whole(reinterpret_cast<std::byte*>(values_.data()), DType::F32, batch, all_rows, all_cols);
    view_ = slice ? whole.row_slice(2, rows).col_slice(4, cols) : whole;
    before_ = values_;
  }

  Tensor(Tensor&&) = default;
  Tensor& operator=(Tensor&&) = default;

  operator View() const { return view_; }       // NOLINT(google-explicit-constructor)
  operator ConstView() const { return view_; }  // NOLINT(google-explicit-constructor)
  const View& view() const { return view_; }

  // Were all elements outside the view left alone?
  bool surroundings_kept() {
    std::vector<float> inside;
    for (std::int64_t b = 0; b < view_.batch; ++b) {
      for (std::int64_t t = 0; t < view_.rows; ++t) {
        const float* row = view_.f32(b, t);
        const std::ptrdiff_t offset = row - values_.data();
        std::copy_n(row, view_.cols, before_.data() + offset);
      }
    }
    return before_ == values_;
  }

 private:
  std::vector<float> values_;
  std::vector<float> before_;
  View view_;
};

inline std::vector<float> floats(ConstView v) {
  std::vector<float> out;
  for (std::int64_t b = 0; b < v.batch; ++b) {
    for (std::int64_t t = 0; t < v.rows; ++t) out.insert(out.end(), v.f32(b, t), v.f32(b, t) + v.cols);
  }
  return out;
}

inline Doubles doubles(ConstView v) {
  const std::vector<float> values = floats(v);
  return {values.begin(), values.end()};
}

// |a - b| / |b|; infinity if the sizes differ, NaN if a value is NaN.
inline double error(ConstView a, const Doubles& b) {
  const std::vector<float> values = floats(a);
  if (values.size() != b.size()) return std::numeric_limits<double>::infinity();
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(values[i]) - b[i];
    difference += d * d;
    norm += b[i] * b[i];
  }
  return norm > 0.0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

// d <cotangent, f(x)> / dx of a float64 function, element by element.
template <class Function>
Doubles numeric_gradient(const Doubles& x, const Doubles& cotangent, Function f) {
  constexpr double kStep = 1e-5;
  const auto loss = [&](const Doubles& at) {
    const Doubles y = f(at);
    double sum = 0.0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += cotangent.at(i) * y[i];
    return sum;
  };
  Doubles gradient(x.size());
  Doubles moved = x;
  for (std::size_t i = 0; i < x.size(); ++i) {
    moved[i] = x[i] + kStep;
    const double up = loss(moved);
    moved[i] = x[i] - kStep;
    gradient[i] = (up - loss(moved)) / (2.0 * kStep);
    moved[i] = x[i];
  }
  return gradient;
}

inline Doubles plus(Doubles a, const Doubles& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b.at(i);
  return a;
}

inline std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

inline constexpr double kForwardTolerance = 3e-6;
inline constexpr double kGradientTolerance = 2e-5;

}  // namespace squareq::test
