#include "model/latent.h"

#include <cmath>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "model/pool.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using namespace squareq::test;

TEST_CASE("latents: packing") {
  constexpr std::size_t kBatch = 2, kChannels = 3, kHeight = 6, kWidth = 10;
  std::vector<float> latent(kBatch * kChannels * kHeight * kWidth);
  std::iota(latent.begin(), latent.end(), 0.0F);
  std::vector<float> tokens(latent.size()), back(latent.size());
  pack_latent(latent, kChannels, kHeight, kWidth, tokens);
  const auto at = [&](std::size_t b, std::size_t c, std::size_t y, std::size_t x) {
    return latent.at(((b * kChannels + c) * kHeight + y) * kWidth + x);
  };
  // Token (row 2, column 3) of sample 1: channel slowest, then row in the patch, then column.
  const std::size_t token = (15 + 2 * 5 + 3) * 4 * kChannels;
  CHECK(tokens.at(token) == at(1, 0, 4, 6));
  CHECK(tokens.at(token + 1) == at(1, 0, 4, 7));
  CHECK(tokens.at(token + 2) == at(1, 0, 5, 6));
  CHECK(tokens.at(token + 4 * 2 + 3) == at(1, 2, 5, 7));
  unpack_latent(tokens, kChannels, kHeight, kWidth, back);
  CHECK(back == latent);
  CHECK_THROWS_AS(pack_latent(latent, kChannels, kHeight / 2, kWidth * 2, tokens), std::logic_error);
}

TEST_CASE("latents: mean, sample and back") {
  const VaeShape shape{.scale = 0.5, .shift = 0.25};
  // Two samples of one channel and two pixels: means, then logarithms of variances, one beyond each end of the clamp.
  const std::vector<float> moments{1.0F, 2.0F, 0.0F, std::log(4.0F), 3.0F, 4.0F, -1000.0F, 1000.0F};
  const std::vector<float> noise{1.0F, -1.0F, 1.0F, 1.0F};
  std::vector<float> latent(4);
  latent_mean(shape, 2, moments, latent);
  CHECK(latent == std::vector<float>{0.375F, 0.875F, 1.375F, 1.875F});
  std::vector<float> z(4);
  latent_to_decoder(shape, latent, z);
  CHECK(z == std::vector<float>{1.0F, 2.0F, 3.0F, 4.0F});

  latent_sample(shape, 2, moments, noise, latent);
  const std::vector<float> expected{0.5F * (2.0F - 0.25F), 0.5F * (0.0F - 0.25F), 0.5F * (3.0F - 0.25F),
                                    0.5F * (4.0F + std::exp(10.0F) - 0.25F)};
  CHECK(relative_l2(latent, expected) <= 1e-6);
  CHECK(std::fabs(latent[2] - expected[2]) <= 1e-6F);
}

TEST_CASE("pool: buffers are reused, never shared") {
  const auto use = [](Pool& pool) {
    Pool::Lease a = pool.take(DType::F32, 1, 1, 64);
    Pool::Lease b = pool.take(DType::F32, 1, 1, 128);
    std::vector<std::byte*> at{a.view().data, b.view().data};
    a.release();
    const Pool::Lease wide = pool.take(DType::F32, 1, 1, 128);  // does not fit where a was
    const Pool::Lease narrow = pool.take(DType::F32, 1, 1, 1);  // does
    at.push_back(wide.view().data);
    at.push_back(narrow.view().data);
    b = pool.take(DType::F32, 1, 2, 64);  // taken before the old b goes
    at.push_back(b.view().data);
    return at;
  };
  Pool measure;
  CHECK(use(measure).front() == nullptr);
  CHECK(measure.peak() == (64 + 3 * 128) * sizeof(float));

  std::vector<std::byte> memory(measure.peak());
  Pool pool(View(memory.data(), DType::U8, 1, 1, static_cast<std::int64_t>(memory.size())));
  const std::vector<std::byte*> at = use(pool);
  std::vector<std::ptrdiff_t> offsets;
  for (const std::byte* p : at) offsets.push_back((p - memory.data()) / 4);
  CHECK(offsets == std::vector<std::ptrdiff_t>{0, 64, 192, 0, 320});
  CHECK_THROWS_AS(pool.take(DType::F32, 1, 1, 512), std::logic_error);
}
