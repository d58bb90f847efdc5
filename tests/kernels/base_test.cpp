#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <stdexcept>

#include "kernels/base/carver.h"
#include "kernels/base/dtype.h"
#include "kernels/base/error.h"
#include "kernels/base/random.h"
#include "kernels/base/thread_pool.h"
#include "tests/catch.h"
#include "tests/support.h"

namespace squareq::test {

TEST_CASE("dtypes have the names and sizes of the safetensors format") {
  CHECK(size_of(DType::F64) == 8);
  CHECK(size_of(DType::BF16) == 2);
  CHECK(size_of(DType::F8_E4M3) == 1);
  CHECK(name_of(DType::F8_E5M2) == "F8_E5M2");
  for (const DType dtype :
       {DType::F64, DType::F32, DType::F16, DType::BF16, DType::F8_E4M3, DType::F8_E5M2, DType::I64, DType::I32,
        DType::I16, DType::I8, DType::U64, DType::U32, DType::U16, DType::U8, DType::BOOL}) {
    CHECK(dtype_from_name(name_of(dtype)) == dtype);
    CHECK(is_floating(dtype) == (contains(name_of(dtype), "F")));
  }
  CHECK(!dtype_from_name("F4").has_value());
  CHECK(!dtype_from_name("").has_value());
}

TEST_CASE("E4M3 codes have their golden values and all round-trip") {
  CHECK(e4m3_to_f32(0x00) == 0.0F);
  CHECK(e4m3_to_f32(0x01) == 0.001953125F);
  CHECK(e4m3_to_f32(0x08) == 0.015625F);
  CHECK(e4m3_to_f32(0x38) == 1.0F);
  CHECK(e4m3_to_f32(0x3C) == 1.5F);
  CHECK(e4m3_to_f32(0x7E) == 448.0F);
  CHECK(std::isnan(e4m3_to_f32(0x7F)));
  CHECK(std::isnan(e4m3_to_f32(0xFF)));
  CHECK(e4m3_to_f32(0xC0) == -2.0F);
  for (unsigned code = 0; code < 256; ++code) {
    const float value = e4m3_to_f32(static_cast<std::uint8_t>(code));
    const unsigned back = f32_to_e4m3(value);
    if (std::isnan(value)) {
      REQUIRE((back & 0x7FU) == 0x7FU);
    } else {
      REQUIRE(back == code);
    }
  }
}

TEST_CASE("E4M3 rounds to nearest even and saturates") {
  for (unsigned code = 0; code + 1 < 0x7F; ++code) {
    const float low = e4m3_to_f32(static_cast<std::uint8_t>(code));
    const float high = e4m3_to_f32(static_cast<std::uint8_t>(code + 1));
    const float middle = 0.5F * (low + high);
    REQUIRE(f32_to_e4m3(middle) == (code % 2 == 0 ? code : code + 1));
    REQUIRE(f32_to_e4m3(std::nextafter(middle, 0.0F)) == code);
    REQUIRE(f32_to_e4m3(std::nextafter(middle, 1e9F)) == code + 1);
    REQUIRE(f32_to_e4m3(-middle) == (0x80U | f32_to_e4m3(middle)));
  }
  CHECK(f32_to_e4m3(1e9F) == 0x7E);
  CHECK(f32_to_e4m3(-std::numeric_limits<float>::infinity()) == 0xFE);
}

TEST_CASE("E5M2 codes have the values of the upper byte of a half") {
  CHECK(e5m2_to_f32(0x3C) == 1.0F);
  CHECK(e5m2_to_f32(0x01) == 0x1p-16F);
  CHECK(e5m2_to_f32(0xFB) == -57344.0F);
  CHECK(std::isinf(e5m2_to_f32(0x7C)));
  CHECK(std::isnan(e5m2_to_f32(0x7F)));
}

TEST_CASE("all halves and bfloat16 numbers round-trip") {
  CHECK(f16_to_f32(0x3C00) == 1.0F);
  CHECK(f16_to_f32(0x0001) == 0x1p-24F);
  CHECK(f16_to_f32(0x7BFF) == 65504.0F);
  CHECK(bf16_to_f32(0x3F80) == 1.0F);
  for (std::uint32_t i = 0; i < 65536; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const float half = f16_to_f32(bits);
    if (std::isnan(half)) {
      REQUIRE(std::isnan(f16_to_f32(f32_to_f16(half))));
    } else {
      REQUIRE(f32_to_f16(half) == bits);
    }
    const float brain = bf16_to_f32(bits);
    if (std::isnan(brain)) {
      REQUIRE(std::isnan(bf16_to_f32(f32_to_bf16(brain))));
    } else {
      REQUIRE(f32_to_bf16(brain) == bits);
    }
  }
}

TEST_CASE("halves and bfloat16 numbers round to nearest even") {
  for (std::uint32_t i = 0; i < 0x7BFF; ++i) {
    const float low = f16_to_f32(static_cast<std::uint16_t>(i));
    const float high = f16_to_f32(static_cast<std::uint16_t>(i + 1));
    const float middle = 0.5F * (low + high);
    REQUIRE(f32_to_f16(middle) == i + i % 2);
    REQUIRE(f32_to_f16(std::nextafter(middle, 0.0F)) == i);
    REQUIRE(f32_to_f16(-std::nextafter(middle, 1e9F)) == (0x8000U | (i + 1)));
  }
  CHECK(f32_to_f16(65519.0F) == 0x7BFF);
  CHECK(f32_to_f16(65520.0F) == 0x7C00);
  for (std::uint32_t i = 0; i < 0x7F80; ++i) {
    const float middle = std::bit_cast<float>((i << 16U) + 0x8000U);
    REQUIRE(f32_to_bf16(middle) == i + i % 2);
    REQUIRE(f32_to_bf16(std::nextafter(middle, 0.0F)) == i);
  }
}

TEST_CASE("arrays of any type convert at any alignment") {
  std::array<std::byte, 65> memory{};
  std::array<float, 2> out{};
  const auto read = [&](auto first, auto second, DType dtype) {
    std::memcpy(&memory[1], &first, sizeof(first));
    std::memcpy(&memory[1 + sizeof(first)], &second, sizeof(second));
    to_f32(&memory[1], dtype, out.data(), 2);
    return out;
  };
  const std::array<float, 2> expected{3.0F, -2.0F};
  CHECK(read(3.0, -2.0, DType::F64) == expected);
  CHECK(read(3.0F, -2.0F, DType::F32) == expected);
  CHECK(read(f32_to_f16(3.0F), f32_to_f16(-2.0F), DType::F16) == expected);
  CHECK(read(f32_to_bf16(3.0F), f32_to_bf16(-2.0F), DType::BF16) == expected);
  CHECK(read(f32_to_e4m3(3.0F), f32_to_e4m3(-2.0F), DType::F8_E4M3) == expected);
  CHECK(read(std::int64_t{3}, std::int64_t{-2}, DType::I64) == expected);
  CHECK(read(std::int32_t{3}, std::int32_t{-2}, DType::I32) == expected);
  CHECK(read(std::int16_t{3}, std::int16_t{-2}, DType::I16) == expected);
  CHECK(read(std::int8_t{3}, std::int8_t{-2}, DType::I8) == expected);
  CHECK(read(std::uint8_t{3}, std::uint8_t{254}, DType::U8) == std::array<float, 2>{3.0F, 254.0F});
  for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
    from_f32(expected.data(), dtype, &memory[1], 2);
    to_f32(&memory[1], dtype, out.data(), 2);
    CHECK(out == expected);
  }
  CHECK_THROWS_AS(from_f32(expected.data(), DType::F64, memory.data(), 2), std::logic_error);
}

TEST_CASE("Philox 4x32-10 gives the known answers of its authors") {
  using Block = std::array<std::uint32_t, 4>;
  CHECK(philox4x32({}, {}) == Block{0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8});
  constexpr std::uint32_t kOnes = 0xFFFFFFFF;
  CHECK(philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}) ==
        Block{0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD});
  CHECK(philox4x32({0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344}, {0xA4093822, 0x299F31D0}) ==
        Block{0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1});
}

TEST_CASE("random streams are functions of their whole key") {
  const RandomKey key{.seed = 7, .purpose = Purpose::kTest, .step = 1, .micro_step = 2, .sample = 3, .module = 4};
  std::set<std::uint32_t> first;
  first.insert(Random(key).bits());
  for (int field = 0; field < 6; ++field) {
    RandomKey other = key;
    if (field == 0) other.seed = 8;
    if (field == 1) other.purpose = Purpose::kNoise;
    if (field == 2) other.step = 2;
    if (field == 3) other.micro_step = 3;
    if (field == 4) other.sample = 4;
    if (field == 5) other.module = 5;
    first.insert(Random(other).bits());
  }
  CHECK(first.size() == 7);
  CHECK(Random(key).bits() == Random(key).bits());
}

TEST_CASE("random numbers have the distributions that they promise") {
  Random random({.seed = 3});
  constexpr int kCount = 200000;
  double sum = 0.0, squares = 0.0, fourth = 0.0;
  for (int i = 0; i < kCount; ++i) {
    const double x = random.normal();
    sum += x;
    squares += x * x;
    fourth += x * x * x * x;
  }
  CHECK(std::fabs(sum / kCount) <= 0.01);
  CHECK(std::fabs(squares / kCount - 1.0) <= 0.015);
  CHECK(std::fabs(fourth / kCount - 3.0) <= 0.12);
  std::array<int, 5> counts{};
  double uniforms = 0.0;
  for (int i = 0; i < kCount; ++i) {
    ++counts.at(random.below(5));
    const double u = random.uniform();
    REQUIRE((u > 0.0 && u < 1.0));
    uniforms += u;
  }
  for (const int count : counts) CHECK(std::abs(count - kCount / 5) <= 800);
  CHECK(std::fabs(uniforms / kCount - 0.5) <= 0.004);
  std::array<float, 1000> range{};
  random.fill_uniform(range, -2.0F, 1.0F);
  for (const float x : range) REQUIRE((x >= -2.0F && x <= 1.0F));
}

TEST_CASE("a thread pool calls every index once") {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    CHECK(pool.size() == threads);
    for (const std::int64_t n : {0, 1, 3, 1000}) {
      std::vector<std::atomic<int>> calls(static_cast<std::size_t>(n));
      std::atomic<bool> worker_in_range{true};
      pool.parallel_for(n, [&](std::int64_t i, int worker) {
        ++calls[static_cast<std::size_t>(i)];
        if (worker < 0 || worker >= threads) worker_in_range = false;
      });
      CHECK(worker_in_range);
      for (const std::atomic<int>& count : calls) REQUIRE(count == 1);
    }
  }
}

TEST_CASE("a thread pool hands on the first exception and works again") {
  for (const int threads : {1, 4}) {
    ThreadPool pool(threads);
    for (int repeat = 0; repeat < 20; ++repeat) {
      const std::string message = message_of<std::runtime_error>([&] {
        pool.parallel_for(100, [](std::int64_t i, int) {
          if (i >= 17) throw std::runtime_error("index is " + std::to_string(i));
        });
      });
      REQUIRE(contains(message, "index is "));
      std::atomic<std::int64_t> sum{0};
      pool.parallel_for(100, [&](std::int64_t i, int) { sum += i; });
      REQUIRE(sum == 4950);
    }
  }
}

TEST_CASE("a carver lays out the same with and without memory") {
  const auto layout = [](Carver& carver) {
    carver.take(DType::I8, 1, 3, 5);
    return carver.take(DType::F32, 2, 3, 5);
  };
  Carver measure;
  CHECK(measure.measuring());
  const View shape = layout(measure);
  CHECK(!shape);
  CHECK(shape.count() == 30);
  CHECK(measure.used() == 512);
  std::vector<std::byte> memory(measure.used());
  Carver carve(memory.data(), memory.size());
  CHECK(layout(carve).data == memory.data() + 256);
  Carver small(memory.data(), 256);
  CHECK_THROWS_AS(layout(small), std::logic_error);
}

TEST_CASE("views slice within their bounds only") {
  std::array<float, 24> memory{};
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<float>(i);
  const View v(reinterpret_cast<std::byte*>(memory.data()), DType::F32, 2, 3, 4);
  CHECK(v.contiguous());
  CHECK(v.row_slice(1, 2).f32(1, 0)[0] == 16.0F);
  CHECK(v.col_slice(2, 2).f32(1, 2)[1] == 23.0F);
  CHECK(v.batch_slice(1, 1).f32()[0] == 12.0F);
  CHECK(!v.col_slice(2, 2).contiguous());
  CHECK(v.batch_slice(0, 1).row_slice(1, 2).contiguous());
  CHECK_THROWS_AS(v.row_slice(2, 2), std::logic_error);
  CHECK_THROWS_AS(v.col_slice(-1, 2), std::logic_error);
  CHECK_THROWS_AS(v.batch_slice(2, 1), std::logic_error);
  const View halves(reinterpret_cast<std::byte*>(memory.data()), DType::F16, 1, 1, 4);
  CHECK_THROWS_AS(halves.f32(), std::logic_error);
}

TEST_CASE("an error says where, what, what else and what to do") {
  const FormatError error(
      {.where = "a.safetensors", .found = "shape [3]", .expected = "shape [4]", .advice = "rebuild"});
  CHECK(std::string(error.what()) == "a.safetensors: found shape [3], expected shape [4] (rebuild)");
  CHECK(error.problem().found == "shape [3]");
}

}  // namespace squareq::test
