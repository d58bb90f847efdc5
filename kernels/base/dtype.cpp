#include "kernels/base/dtype.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace squareq {
namespace {

struct DTypeInfo {
  DType dtype;
  std::string_view name;
  std::size_t size;
};

constexpr std::array<DTypeInfo, 15> kInfo{{{DType::F64, "F64", 8},
                                           {DType::F32, "F32", 4},
                                           {DType::F16, "F16", 2},
                                           {DType::BF16, "BF16", 2},
                                           {DType::F8_E4M3, "F8_E4M3", 1},
                                           {DType::F8_E5M2, "F8_E5M2", 1},
                                           {DType::I64, "I64", 8},
                                           {DType::I32, "I32", 4},
                                           {DType::I16, "I16", 2},
                                           {DType::I8, "I8", 1},
                                           {DType::U64, "U64", 8},
                                           {DType::U32, "U32", 4},
                                           {DType::U16, "U16", 2},
                                           {DType::U8, "U8", 1},
                                           {DType::BOOL, "BOOL", 1}}};

// Value of a small float with `mantissa_bits` of mantissa and the given exponent bias, without special codes.
float small_float(unsigned bits, int mantissa_bits, int exponent_bits, int bias) {
  const unsigned mantissa = bits & ((1U << mantissa_bits) - 1U);
  const unsigned exponent = (bits >> mantissa_bits) & ((1U << exponent_bits) - 1U);
  const bool negative = ((bits >> (mantissa_bits + exponent_bits)) & 1U) != 0;
  const float fraction = static_cast<float>(mantissa) / static_cast<float>(1U << mantissa_bits);
  const float magnitude =
      exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1.0F + fraction, static_cast<int>(exponent) - bias);
  return negative ? -magnitude : magnitude;
}

std::array<float, 256> make_e4m3_table() {
  std::array<float, 256> table{};
  for (unsigned i = 0; i < 256; ++i) {
    table[i] = (i & 0x7FU) == 0x7FU ? std::numeric_limits<float>::quiet_NaN() : small_float(i, 3, 4, 7);
  }
  return table;
}

std::array<float, 256> make_e5m2_table() {
  std::array<float, 256> table{};
  for (unsigned i = 0; i < 256; ++i) table[i] = f16_to_f32(static_cast<std::uint16_t>(i << 8U));
  return table;
}

template <class T, class Convert>
void convert_each(const std::byte* from, float* to, std::int64_t count, Convert convert) {
  for (std::int64_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, from + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
    to[i] = convert(value);
  }
}

template <class T>
void cast_each(const std::byte* from, float* to, std::int64_t count) {
  convert_each<T>(from, to, count, [](T value) { return static_cast<float>(value); });
}

}  // namespace

std::size_t size_of(DType dtype) { return kInfo.at(static_cast<std::size_t>(dtype)).size; }

std::string_view name_of(DType dtype) { return kInfo.at(static_cast<std::size_t>(dtype)).name; }

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const DTypeInfo& info : kInfo) {
    if (info.name == name) return info.dtype;
  }
  return std::nullopt;
}

bool is_floating(DType dtype) { return dtype <= DType::F8_E5M2; }

float bf16_to_f32(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16U); }

float f16_to_f32(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000U) << 16U;
  const std::uint32_t magnitude = bits & 0x7FFFU;
  if (magnitude >= 0x7C00U) return std::bit_cast<float>(sign | 0x7F800000U | ((magnitude & 0x3FFU) << 13U));
  if (magnitude < 0x400U) {
    const float value = std::ldexp(static_cast<float>(magnitude), -24);
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | ((magnitude << 13U) + (112U << 23U)));
}

float e4m3_to_f32(std::uint8_t bits) {
  static const std::array<float, 256> table = make_e4m3_table();
  return table[bits];
}

float e5m2_to_f32(std::uint8_t bits) {
  static const std::array<float, 256> table = make_e5m2_table();
  return table[bits];
}

std::uint16_t f32_to_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>((bits >> 16U) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U);
}

std::uint16_t f32_to_f16(float value) {
  const auto sign = static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(value) >> 16U) & 0x8000U);
  const float magnitude = std::fabs(value);
  std::uint16_t code = 0;
  if (std::isnan(value)) {
    code = 0x7E00U;
  } else if (magnitude >= 65520.0F) {  // halfway between the largest finite value and the next power of two
    code = 0x7C00U;
  } else if (magnitude < 0x1p-14F) {
    code = static_cast<std::uint16_t>(std::nearbyint(std::ldexp(magnitude, 24)));
  } else {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(magnitude) - (112U << 23U);
    code = static_cast<std::uint16_t>((bits + 0xFFFU + ((bits >> 13U) & 1U)) >> 13U);
  }
  return static_cast<std::uint16_t>(sign | code);
}

std::uint8_t f32_to_e4m3(float value) {
  const std::uint8_t sign = std::signbit(value) ? 0x80U : 0x00U;
  if (std::isnan(value)) return sign | 0x7FU;
  const float magnitude = std::fmin(std::fabs(value), 448.0F);
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  // One unit in the last place is 2^(e-4) for magnitudes in [2^(e-1), 2^e), and never below the subnormal step 2^-9.
  const int step = std::max(exponent - 4, -9);
  const float rounded = std::ldexp(std::nearbyint(std::ldexp(magnitude, -step)), step);
  if (rounded < 0x1p-6F) return sign | static_cast<std::uint8_t>(std::ldexp(rounded, 9));
  const float fraction = std::frexp(rounded, &exponent) * 2.0F - 1.0F;
  return sign | static_cast<std::uint8_t>(((exponent - 1 + 7) << 3) + static_cast<int>(fraction * 8.0F));
}

void to_f32(const std::byte* from, DType dtype, float* to, std::int64_t count) {
  if (count == 0) return;  // the pointers may be null then
  switch (dtype) {
    case DType::F64: return cast_each<double>(from, to, count);
    case DType::F32: std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float)); return;
    case DType::F16: return convert_each<std::uint16_t>(from, to, count, f16_to_f32);
    case DType::BF16: return convert_each<std::uint16_t>(from, to, count, bf16_to_f32);
    case DType::F8_E4M3: return convert_each<std::uint8_t>(from, to, count, e4m3_to_f32);
    case DType::F8_E5M2: return convert_each<std::uint8_t>(from, to, count, e5m2_to_f32);
    case DType::I64: return cast_each<std::int64_t>(from, to, count);
    case DType::I32: return cast_each<std::int32_t>(from, to, count);
    case DType::I16: return cast_each<std::int16_t>(from, to, count);
    case DType::I8: return cast_each<std::int8_t>(from, to, count);
    case DType::U64: return cast_each<std::uint64_t>(from, to, count);
    case DType::U32: return cast_each<std::uint32_t>(from, to, count);
    case DType::U16: return cast_each<std::uint16_t>(from, to, count);
    case DType::U8:
    case DType::BOOL: return cast_each<std::uint8_t>(from, to, count);
  }
  throw std::logic_error("to_f32: dtype out of range");
}

void from_f32(const float* from, DType dtype, std::byte* to, std::int64_t count) {
  if (count == 0) return;
  if (dtype == DType::F32) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
  } else if (dtype == DType::F16 || dtype == DType::BF16) {
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint16_t bits = dtype == DType::F16 ? f32_to_f16(from[i]) : f32_to_bf16(from[i]);
      std::memcpy(to + i * 2, &bits, sizeof(bits));
    }
  } else {
    throw std::logic_error("from_f32: only F32, F16 and BF16 are written");
  }
}

}  // namespace squareq
