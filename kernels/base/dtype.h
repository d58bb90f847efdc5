// Element types of tensors in files and in memory, and exact conversions of their values to float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace squareq {

enum class DType : std::uint8_t { F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I64, I32, I16, I8, U64, U32, U16, U8, BOOL };

std::size_t size_of(DType dtype);
std::string_view name_of(DType dtype);                        // the safetensors spelling: "BF16"
std::optional<DType> dtype_from_name(std::string_view name);  // nullopt when unknown
bool is_floating(DType dtype);

float f16_to_f32(std::uint16_t bits);
float bf16_to_f32(std::uint16_t bits);
float e4m3_to_f32(std::uint8_t bits);  // E4M3FN: 0x7F and 0xFF are NaN, no infinity, largest 448
float e5m2_to_f32(std::uint8_t bits);

std::uint16_t f32_to_f16(float value);   // round to nearest even, overflow to infinity
std::uint16_t f32_to_bf16(float value);  // round to nearest even, NaN stays NaN
std::uint8_t f32_to_e4m3(float value);   // round to nearest even, saturates at +-448

// Reads `count` elements of a floating or integer type at `from` (any alignment, little endian) into floats.
void to_f32(const std::byte* from, DType dtype, float* to, std::int64_t count);

// Writes `count` floats as F32, F16 or BF16 (any alignment).
void from_f32(const float* from, DType dtype, std::byte* to, std::int64_t count);

}  // namespace squareq
