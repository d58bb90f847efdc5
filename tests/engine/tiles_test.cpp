#include "engine/tiles.h"

#include <cmath>

#include "engine/encoders.h"
#include "model/latent.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;

namespace {

std::vector<float> waves(std::int64_t channels, std::int64_t height, std::int64_t width) {
  std::vector<float> values;
  for (std::int64_t c = 0; c < channels; ++c) {
    for (std::int64_t r = 0; r < height; ++r) {
      for (std::int64_t x = 0; x < width; ++x) {
        values.push_back(static_cast<float>(std::sin(0.05 * static_cast<double>(r + 7 * c)) *
                                            std::cos(0.03 * static_cast<double>(x))));
      }
    }
  }
  return values;
}

double relative_l2(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double error = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    error += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(error / norm);
}

}  // namespace

TEST_CASE("tiles: the shares of all tiles add up to one") {
  const std::int64_t sizes[][2] = {{64, 64}, {72, 64}, {64, 104}, {200, 136}, {64, 1000}, {16, 24}};
  for (const auto& [height, width] : sizes) {
    CAPTURE(height, width);
    const Tiling tiling(height, width, 64, 8);
    CHECK(tiling.height() <= 64);
    CHECK(tiling.width() <= 64);
    const std::vector<float> picture = waves(3, height, width);
    std::int64_t calls = 0;
    const std::vector<float> same = tiling.map(picture, 1, 1, [&](const std::vector<float>& tile) {
      ++calls;
      CHECK(tile.size() == static_cast<std::size_t>(3 * tiling.height() * tiling.width()));
      return tile;
    });
    CHECK(calls == tiling.count());
    CHECK(relative_l2(same, picture) <= 1e-6);
    if (tiling.count() == 1) CHECK(same == picture);
  }
}

TEST_CASE("tiles: results of another resolution land where their pixels are") {
  const Tiling tiling(128, 96, 64, 8);
  const std::vector<float> picture = waves(2, 128, 96);
  // The corner of every 8 x 8 pixels, and back.
  const auto corners = [](const std::vector<float>& values, std::int64_t height, std::int64_t width) {
    std::vector<float> result;
    for (std::int64_t c = 0; c < 2; ++c) {
      for (std::int64_t r = 0; r < height; r += 8) {
        for (std::int64_t x = 0; x < width; x += 8)
          result.push_back(values[static_cast<std::size_t>((c * height + r) * width + x)]);
      }
    }
    return result;
  };
  const std::vector<float> small = tiling.map(
      picture, 1, 8, [&](const std::vector<float>& tile) { return corners(tile, tiling.height(), tiling.width()); });
  CHECK(relative_l2(small, corners(picture, 128, 96)) <= 1e-6);
  std::size_t visits = 0;
  const std::vector<float> large = tiling.map(small, 8, 1, [&](const std::vector<float>& tile) {
    ++visits;
    CHECK(tile.size() == static_cast<std::size_t>(2 * tiling.height() * tiling.width() / 64));
    return std::vector<float>(static_cast<std::size_t>(tiling.height() * tiling.width()), 2.0F);
  });
  CHECK(visits == 6);
  CHECK(large.size() == 128 * 96);
  for (const float value : large) REQUIRE(std::abs(value - 2.0F) <= 1e-6F);
}

TEST_CASE("tiles: a tiled picture is close to one in one piece") {
  const std::string vae = ASSETS "/FLUX-mini/vae";
  const std::unique_ptr<Device> device = make_cpu_device(2);
  const PictureSize size{.height = 96, .width = 128};
  using Half = Autoencoder::Half;
  const auto encode = [&](std::int64_t largest_tile) {
    Autoencoder encoder(*device, vae, Half::kEncoder, {size}, largest_tile);
    encoder.allocate();
    return encoder.encode(waves(3, 96, 128), size);
  };
  const std::vector<float> moments = encode(Autoencoder::kLargestTile);
  CHECK(relative_l2(encode(64), moments) <= 0.2);
  const auto decode = [&](std::int64_t largest_tile) {
    Autoencoder decoder(*device, vae, Half::kDecoder, {size}, largest_tile);
    std::vector<float> latent(moments.size() / 2);
    latent_mean(decoder.shape(), 1, moments, latent);
    std::vector<float> packed(latent.size());
    pack_latent(latent, decoder.shape().latent_channels, 12, 16, packed);
    decoder.allocate();
    return decoder.decode(packed, size);
  };
  CHECK(relative_l2(decode(64), decode(Autoencoder::kLargestTile)) <= 0.2);
}
