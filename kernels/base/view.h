// Views of memory that somebody else owns. One kind serves everything: activations are [batch, rows, cols] with the
// last axis contiguous; vectors are [1, 1, n]; a slice of rows or columns is again a view, so concatenations of
// token streams (text, image) and of features (q, k, v, mlp) are never copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "kernels/base/dtype.h"

namespace squareq {

enum class Accumulate : std::uint8_t { kNo, kYes };  // `=` or `+=`

template <class Byte>
struct BasicView {
  Byte* data = nullptr;
  DType dtype = DType::F32;
  std::int64_t batch = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t batch_stride = 0;  // in elements
  std::int64_t row_stride = 0;    // in elements

  BasicView() = default;
  // Contiguous [batch, rows, cols].
  BasicView(Byte* data_in, DType dtype_in, std::int64_t batch_in, std::int64_t rows_in, std::int64_t cols_in)
      : data(data_in),
        dtype(dtype_in),
        batch(batch_in),
        rows(rows_in),
        cols(cols_in),
        batch_stride(rows_in * cols_in),
        row_stride(cols_in) {}
  // A mutable view is usable wherever a read-only one is wanted.
  template <class Other>
  requires(std::is_const_v<Byte> && !std::is_const_v<Other>)
      BasicView(const BasicView<Other>& other)  // NOLINT(google-explicit-constructor)
      : data(other.data),
        dtype(other.dtype),
        batch(other.batch),
        rows(other.rows),
        cols(other.cols),
        batch_stride(other.batch_stride),
        row_stride(other.row_stride) {}

  explicit operator bool() const { return data != nullptr; }
  std::int64_t count() const { return batch * rows * cols; }
  std::size_t bytes() const { return static_cast<std::size_t>(count()) * size_of(dtype); }  // of a contiguous view
  bool contiguous() const { return row_stride == cols && (batch == 1 || batch_stride == rows * cols); }

  // Rows [begin, begin + n) of every sample.
  BasicView row_slice(std::int64_t begin, std::int64_t n) const {
    if (begin < 0 || n < 0 || begin + n > rows) throw std::logic_error("View::row_slice out of range");
    BasicView v = *this;
    v.data += begin * row_stride * static_cast<std::int64_t>(size_of(dtype));
    v.rows = n;
    return v;
  }
  // Columns [begin, begin + n) of every row.
  BasicView col_slice(std::int64_t begin, std::int64_t n) const {
    if (begin < 0 || n < 0 || begin + n > cols) throw std::logic_error("View::col_slice out of range");
    BasicView v = *this;
    v.data += begin * static_cast<std::int64_t>(size_of(dtype));
    v.cols = n;
    return v;
  }
  // Samples [begin, begin + n).
  BasicView batch_slice(std::int64_t begin, std::int64_t n) const {
    if (begin < 0 || n < 0 || begin + n > batch) throw std::logic_error("View::batch_slice out of range");
    BasicView v = *this;
    v.data += begin * batch_stride * static_cast<std::int64_t>(size_of(dtype));
    v.batch = n;
    return v;
  }

  // Pointer to row `r` of sample `b` of a float32 view (the only activation type of the CPU backend).
  auto f32(std::int64_t b = 0, std::int64_t r = 0) const {
    using Float = std::conditional_t<std::is_const_v<Byte>, const float, float>;
    if (dtype != DType::F32) throw std::logic_error("View::f32 on a view that is not F32");
    return reinterpret_cast<Float*>(data) + b * batch_stride + r * row_stride;
  }
};

using View = BasicView<std::byte>;
using ConstView = BasicView<const std::byte>;

inline bool same_shape(const ConstView& a, const ConstView& b) {
  return a.batch == b.batch && a.rows == b.rows && a.cols == b.cols;
}

// How the numbers of a frozen linear layer are stored.
enum class Codec : std::uint8_t {
  kFloat,     // F32, F16 or BF16 values [out, in]
  kInt8Rows,  // I8 values [out, in] and one F32 scale per output row: w = scale[row] * q
};

// A frozen linear layer, y = x W^T + b. Which payloads are present follows from the codec.
struct Weight {
  Codec codec = Codec::kFloat;
  ConstView values;  // [1, out, in]
  ConstView scales;  // [1, 1, out] F32 for kInt8Rows, else empty
  ConstView bias;    // [1, 1, out], F32, F16 or BF16; empty without bias
  // The same values as Ops::prepare wrote them, and as its products read them; empty: there is no such copy.
  ConstView prepared;

  std::int64_t out() const { return values.rows; }
  std::int64_t in() const { return values.cols; }
};

}  // namespace squareq
