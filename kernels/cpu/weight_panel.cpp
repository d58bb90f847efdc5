#include "kernels/cpu/weight_panel.h"

#include <bit>
#include <cstring>

namespace squareq {
namespace {

void expand_int8(const std::byte* from, float scale, float* to, std::int64_t n) {
  const auto* q = reinterpret_cast<const std::int8_t*>(from);
  for (std::int64_t i = 0; i < n; ++i) to[i] = scale * static_cast<float>(q[i]);
}

std::uint16_t load16(const std::byte* from) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, from, sizeof(bits));
  return bits;
}

void expand_bf16(const std::byte* from, float* to, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    to[i] = std::bit_cast<float>(static_cast<std::uint32_t>(load16(from + 2 * i)) << 16U);
  }
}

// Without branches, unlike f16_to_f32. The bits of a half moved into place read as the value times 2^-112, also if it
// is subnormal; only infinity and NaN need their exponent filled up.
void expand_f16(const std::byte* from, float* to, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t bits = load16(from + 2 * i);
    const float magnitude = std::bit_cast<float>((bits & 0x7FFFU) << 13U) * 0x1p112F;
    const std::uint32_t special = (bits & 0x7C00U) == 0x7C00U ? 0x7F800000U : 0U;
    to[i] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | special | ((bits & 0x8000U) << 16U));
  }
}

}  // namespace

ConstMatrix weight_panel(const Weight& weight, std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols,
                         Scratch& memory) {
  const ConstView panel = weight.values.row_slice(row, rows).col_slice(col, cols);
  if (weight.codec == Codec::kFloat && panel.dtype == DType::F32) return {panel.f32(), panel.row_stride};
  const auto row_bytes = panel.row_stride * static_cast<std::int64_t>(size_of(panel.dtype));
  const float* scales = weight.codec == Codec::kInt8Rows ? weight.scales.f32() + row : nullptr;
  float* to = memory.at_least(rows * cols);
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::byte* from = panel.data + r * row_bytes;
    if (scales != nullptr) {
      require(panel.dtype == DType::I8, "weight: values of codec kInt8Rows must be I8");
      expand_int8(from, scales[r], to + r * cols, cols);
    } else if (panel.dtype == DType::BF16) {
      expand_bf16(from, to + r * cols, cols);
    } else {
      require(panel.dtype == DType::F16, "weight: values of codec kFloat must be F32, F16 or BF16");
      expand_f16(from, to + r * cols, cols);
    }
  }
  return {to, cols};
}

}  // namespace squareq
