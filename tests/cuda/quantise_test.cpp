#include "kernels/cuda/quantise.h"

#include <array>

#include "tests/cuda/harness.h"
#include "tests/cuda/quantised.h"

namespace squareq::test {
namespace {

class DeviceBytes {
 public:
  explicit DeviceBytes(std::size_t bytes) : memory_(gpu()->allocate(bytes)) {}
  View view(DType dtype, std::int64_t rows, std::int64_t cols) const { return {memory_.get(), dtype, 1, rows, cols}; }

 private:
  Buffer memory_;
};

// After all work on the default stream, which the device's stream does not wait for.
template <class T>
std::vector<T> downloaded(const View& v) {
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  std::vector<T> values(static_cast<std::size_t>(v.count()));
  gpu()->download(v, values.data());
  return values;
}

struct Case {
  std::int64_t batch, rows, cols, pad;
};

// Odd sizes; rows that fill the registers of 32 to 448 threads, and longer ones; slices with and without alignment.
constexpr std::array<Case, 8> kCases{{{2, 3, 17, 0},
                                      {1, 5, 3072, 8},
                                      {2, 150, 768, 0},
                                      {1, 3, 64, 3},
                                      {1, 2, 21504, 0},
                                      {1, 2, 21512, 0},
                                      {1, 3, 15360, 16},
                                      {1, 1, 1, 0}}};

}  // namespace

TEST_CASE("rows are quantised as plain loops do it, bit for bit") {
  if (gpu() == nullptr) return;
  for (const Case& c : kCases) {
    for (const DType dtype : {DType::BF16, DType::F32}) {
      for (const bool scaled : {false, true}) {
        const Twin x(c.batch, c.rows, c.cols, 1, dtype, c.pad);
        const Twin factors(1, 1, c.cols, 2, DType::F32);
        const std::int64_t rows = c.batch * c.rows;
        const DeviceBytes values(static_cast<std::size_t>(rows * c.cols)), scales(static_cast<std::size_t>(rows * 4));
        const cuda::QuantisedRows out{values.view(DType::I8, rows, c.cols), scales.view(DType::F32, 1, rows)};
        cuda::quantise_rows(x.cuda, scaled ? ConstView(factors.cuda) : ConstView{}, out, nullptr);
        const HostRows expected = quantise_on_host(x.cpu, scaled ? factors.cpu.f32() : nullptr);
        CHECK(downloaded<std::int8_t>(out.values) == expected.values);
        CHECK(downloaded<float>(out.scales) == expected.scales);
      }
    }
  }
}

TEST_CASE("rows of zeros, of tiny numbers, and of numbers that are none") {
  if (gpu() == nullptr) return;
  constexpr std::int64_t kCols = 64;
  Twin x(1, 5, kCols, 1, DType::F32);
  std::vector<float> values(x.cpu.f32(), x.cpu.f32() + 5 * kCols);
  std::fill_n(values.begin(), kCols, 0.0F);
  std::fill_n(values.begin() + kCols, kCols, 1e-38F);
  values[2 * kCols + 7] = std::numeric_limits<float>::quiet_NaN();
  values[3 * kCols + 9] = -std::numeric_limits<float>::infinity();
  gpu()->upload(values.data(), x.cuda);
  const DeviceBytes q(5 * kCols), s(5 * sizeof(float));
  const cuda::QuantisedRows out{q.view(DType::I8, 5, kCols), s.view(DType::F32, 1, 5)};
  cuda::quantise_rows(x.cuda, {}, out, nullptr);
  const auto quantised = downloaded<std::int8_t>(out.values);
  const auto scales = downloaded<float>(out.scales);
  CHECK(std::all_of(quantised.begin(), quantised.begin() + 2 * kCols, [](std::int8_t v) { return v == 0; }));
  CHECK(scales[0] == 1.0F);
  CHECK(scales[1] == 1.0F);
  CHECK_FALSE(std::isfinite(scales[2]));
  CHECK_FALSE(std::isfinite(scales[3]));
  CHECK(std::isfinite(scales[4]));
}

TEST_CASE("INT8 matrices are transposed") {
  if (gpu() == nullptr) return;
  for (const auto& [rows, cols] :
       std::array<std::array<std::int64_t, 2>, 5>{{{16, 16}, {48, 80}, {256, 128}, {400, 304}, {1536, 272}}}) {
    std::vector<std::int8_t> values(static_cast<std::size_t>(rows * cols)), expected(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::int8_t>(i * 7919 % 251);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) {
        expected[static_cast<std::size_t>(c * rows + r)] = values[static_cast<std::size_t>(r * cols + c)];
      }
    }
    const DeviceBytes from(values.size()), to(values.size());
    gpu()->upload(values.data(), from.view(DType::I8, rows, cols));
    cuda::transpose_int8(from.view(DType::I8, rows, cols), to.view(DType::I8, cols, rows), nullptr);
    CHECK(downloaded<std::int8_t>(to.view(DType::I8, cols, rows)) == expected);
  }
}

}  // namespace squareq::test
