#include "kernels/cpu/weight_panel.h"

#include <bit>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "tests/catch.h"
#include "tests/kernels/tensor.h"

namespace squareq::test {

TEST_CASE("weights of every 16-bit code expand to their values") {
  std::vector<std::uint16_t> codes(65536);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint16_t>(i);
  Scratch memory;
  for (const DType dtype : {DType::F16, DType::BF16}) {
    Weight weight;
    weight.values = ConstView(reinterpret_cast<const std::byte*>(codes.data()), dtype, 1, 256, 256);
    const ConstMatrix panel = weight_panel(weight, 0, 256, 0, 256, memory);
    REQUIRE(panel.stride == 256);
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const float expected = dtype == DType::F16 ? f16_to_f32(codes[i]) : bf16_to_f32(codes[i]);
      if (std::isnan(expected)) {
        REQUIRE(std::isnan(panel.data[i]));
      } else {
        REQUIRE(std::bit_cast<std::uint32_t>(panel.data[i]) == std::bit_cast<std::uint32_t>(expected));
      }
    }
  }
}

TEST_CASE("a panel is any rectangle of the weight; floats are not copied") {
  Scratch memory;
  const Tensor values(1, 9, 13, 1);
  Weight weight;
  weight.values = values;
  const ConstMatrix in_place = weight_panel(weight, 2, 4, 3, 5, memory);
  CHECK(in_place.data == values.view().f32(0, 2) + 3);
  CHECK(in_place.stride == 13);

  std::vector<std::int8_t> codes(9 * 13);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::int8_t>(static_cast<int>(i * 2) - 117);
  const Tensor scales(1, 1, 9, 2);
  weight.codec = Codec::kInt8Rows;
  weight.values = ConstView(reinterpret_cast<const std::byte*>(codes.data()), DType::I8, 1, 9, 13);
  weight.scales = scales;
  const ConstMatrix expanded = weight_panel(weight, 2, 4, 3, 5, memory);
  for (std::int64_t r = 0; r < 4; ++r) {
    for (std::int64_t c = 0; c < 5; ++c) {
      const auto code = static_cast<float>(codes[index((r + 2) * 13 + c + 3)]);
      REQUIRE(expanded.row(r)[c] == scales.view().f32()[r + 2] * code);
    }
  }
  weight.codec = Codec::kFloat;
  CHECK_THROWS_AS(weight_panel(weight, 0, 9, 0, 13, memory), std::logic_error);
}

}  // namespace squareq::test
