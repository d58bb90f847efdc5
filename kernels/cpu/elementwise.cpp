#include <array>
#include <cmath>

#include "kernels/base/error.h"
#include "kernels/cpu/activation_math.h"
#include "kernels/cpu/cpu_ops.h"

namespace squareq {
namespace {

// Calls work(value, derivative) with the functions of an activation, as lambdas, so that the loops can inline them.
template <class Work>
void with_activation(Activation f, Work work) {
  switch (f) {
    case Activation::kSilu:
      return work([](float x) { return swish(1.0F, x); }, [](float x) { return swish_derivative(1.0F, x); });
    case Activation::kGeluTanh:
      return work([](float x) { return gelu_tanh(x); }, [](float x) { return gelu_tanh_derivative(x); });
    case Activation::kQuickGelu:
      return work([](float x) { return swish(kQuickGeluSlope, x); },
                  [](float x) { return swish_derivative(kQuickGeluSlope, x); });
  }
  throw std::logic_error("activation: unknown");
}

}  // namespace

void CpuOps::activation(Activation f, ConstView x, ConstView times, View y) {
  require(same_shape(x, y) && (!times || same_shape(x, times)), "activation: shapes");
  with_activation(f, [&](auto value, auto) {
    for_pieces(x.batch, x.rows, x.cols, [&](std::int64_t b, std::int64_t t, std::int64_t begin, std::int64_t n) {
      const float* from = x.f32(b, t) + begin;
      float* to = y.f32(b, t) + begin;
      if (times) {
        const float* factor = times.f32(b, t) + begin;
        for (std::int64_t c = 0; c < n; ++c) to[c] = value(from[c]) * factor[c];
      } else {
        for (std::int64_t c = 0; c < n; ++c) to[c] = value(from[c]);
      }
    });
  });
}

void CpuOps::activation_backward(Activation f, ConstView dy, ConstView x, View dx, Accumulate accumulate) {
  require(same_shape(x, dx) && same_shape(x, dy), "activation_backward: shapes");
  const bool add = accumulate == Accumulate::kYes;
  with_activation(f, [&](auto, auto derivative) {
    for_pieces(x.batch, x.rows, x.cols, [&](std::int64_t b, std::int64_t t, std::int64_t begin, std::int64_t n) {
      const float* from = x.f32(b, t) + begin;
      const float* d = dy.f32(b, t) + begin;
      float* to = dx.f32(b, t) + begin;
      if (add) {
        for (std::int64_t c = 0; c < n; ++c) to[c] += d[c] * derivative(from[c]);
      } else {
        for (std::int64_t c = 0; c < n; ++c) to[c] = d[c] * derivative(from[c]);
      }
    });
  });
}

void CpuOps::gate_backward(ConstView dsum, ConstView gate, ConstView y, View dy, View dgate) {
  const auto per_sample = [&](ConstView v) { return v.batch == dsum.batch && v.rows == 1 && v.cols == dsum.cols; };
  require(same_shape(dsum, dy) && per_sample(gate), "gate_backward: shapes");
  require(!dgate || (per_sample(dgate) && same_shape(y, dsum)), "gate_backward: dgate or y does not fit");
  for_pieces(dy.batch, dy.rows, dy.cols, [&](std::int64_t b, std::int64_t t, std::int64_t begin, std::int64_t n) {
    const float* d = dsum.f32(b, t) + begin;
    const float* g = gate.f32(b) + begin;
    float* to = dy.f32(b, t) + begin;
    for (std::int64_t c = 0; c < n; ++c) to[c] = d[c] * g[c];
  });
  if (!dgate) return;
  column_sums(dsum.rows, dgate,
              [&](std::int64_t b, std::int64_t t, std::int64_t c) { return dsum.f32(b, t)[c] * y.f32(b, t)[c]; });
}

void CpuOps::gather(ConstView table, std::span<const std::int32_t> ids, View y) {
  require(table.batch == 1 && table.cols == y.cols && static_cast<std::int64_t>(ids.size()) == y.batch * y.rows,
          "gather: shapes");
  for (const std::int32_t id : ids) {
    if (id >= 0 && id < table.rows) continue;
    throw FormatError({.where = "embedding table",
                       .found = "id " + std::to_string(id),
                       .expected = "an id below " + std::to_string(table.rows),
                       .advice = "the tokenizer does not belong to this model"});
  }
  const auto row_bytes = table.row_stride * static_cast<std::int64_t>(size_of(table.dtype));
  for_rows(y.batch, y.rows, y.cols, [&](std::int64_t b, std::int64_t t, int) {
    const std::int64_t id = ids[static_cast<std::size_t>(b * y.rows + t)];
    to_f32(table.data + id * row_bytes, table.dtype, y.f32(b, t), y.cols);
  });
}

void CpuOps::sinusoid(std::span<const float> values, View y) {
  require(static_cast<std::int64_t>(values.size()) == y.batch && y.rows == 1 && y.cols % 2 == 0, "sinusoid: shapes");
  const std::int64_t half = y.cols / 2;
  for (std::int64_t b = 0; b < y.batch; ++b) {
    float* to = y.f32(b);
    for (std::int64_t j = 0; j < half; ++j) {
      const double frequency = std::pow(10000.0, -static_cast<double>(j) / static_cast<double>(half));
      const double angle = 1000.0 * static_cast<double>(values[static_cast<std::size_t>(b)]) * frequency;
      to[j] = static_cast<float>(std::cos(angle));
      to[half + j] = static_cast<float>(std::sin(angle));
    }
  }
}

void CpuOps::transpose(ConstView x, View y) {
  require(y.batch == x.batch && y.rows == x.cols && y.cols == x.rows, "transpose: shapes");
  constexpr std::int64_t kBlock = 32;  // both sides of a block stay in the cache
  for_rows(y.batch, ceil_div(y.rows, kBlock), kBlock * y.cols, [&](std::int64_t b, std::int64_t block, int) {
    const std::int64_t last = std::min((block + 1) * kBlock, y.rows);
    for (std::int64_t begin = 0; begin < y.cols; begin += kBlock) {
      const std::int64_t end = std::min(begin + kBlock, y.cols);
      for (std::int64_t r = block * kBlock; r < last; ++r) {
        for (std::int64_t c = begin; c < end; ++c) y.f32(b, r)[c] = x.f32(b, c)[r];
      }
    }
  });
}

void CpuOps::copy(ConstView x, View y, Accumulate accumulate) {
  require(same_shape(x, y), "copy: shapes");
  for_pieces(x.batch, x.rows, x.cols, [&](std::int64_t b, std::int64_t t, std::int64_t begin, std::int64_t n) {
    const float* from = x.f32(b, t) + begin;
    float* to = y.f32(b, t) + begin;
    if (accumulate == Accumulate::kNo) {
      std::copy_n(from, n, to);
    } else {
      for (std::int64_t c = 0; c < n; ++c) to[c] += from[c];
    }
  });
}

void CpuOps::fill(View y, float value) {
  for_pieces(y.batch, y.rows, y.cols, [&](std::int64_t b, std::int64_t t, std::int64_t begin, std::int64_t n) {
    std::fill_n(y.f32(b, t) + begin, n, value);
  });
}

}  // namespace squareq
