#include "model/vae.h"

#include <algorithm>
#include <numeric>

#include "model/latent.h"
#include "model/pool.h"
#include "tests/model/encoder_harness.h"

using namespace squareq;
using namespace squareq::test;

namespace {

struct Size {
  std::int64_t batch, height, width;
};

std::vector<float> encode(const VaeShape& shape, const Size& size, std::vector<float> image, WeightVisitor& weights) {
  vae::Network encoder = vae::make_encoder(shape);
  vae::weights(weights, encoder);
  const auto bytes =
      static_cast<std::int64_t>(vae::encode_workspace(shape, DType::F32, size.batch, size.height, size.width));
  std::vector<float> workspace(static_cast<std::size_t>(bytes) / sizeof(float));
  const std::int64_t latent = size.height * size.width / (shape.factor() * shape.factor());
  std::vector<float> moments(static_cast<std::size_t>(size.batch * 2 * shape.latent_channels * latent));
  vae::encode(*make_cpu_ops(2), shape, encoder, view_of(image, size.batch, 3, size.height * size.width), size.height,
              size.width, view_of(workspace, 1, 1, bytes / 4),
              view_of(moments, size.batch, 2 * shape.latent_channels, latent));
  return moments;
}

// Latents as the transformer knows them to pixels.
std::vector<float> decode(const VaeShape& shape, const Size& size, std::vector<float> latent, WeightVisitor& weights) {
  vae::Network decoder = vae::make_decoder(shape);
  vae::weights(weights, decoder);
  const auto bytes =
      static_cast<std::int64_t>(vae::decode_workspace(shape, DType::F32, size.batch, size.height, size.width));
  std::vector<float> workspace(static_cast<std::size_t>(bytes) / sizeof(float));
  const std::int64_t pixels = size.height * size.width;
  std::vector<float> image(static_cast<std::size_t>(size.batch * 3 * pixels));
  latent_to_decoder(shape, latent, latent);
  vae::decode(*make_cpu_ops(2), shape, decoder,
              view_of(latent, size.batch, shape.latent_channels, pixels / (shape.factor() * shape.factor())),
              size.height, size.width, view_of(workspace, 1, 1, bytes / 4), view_of(image, size.batch, 3, pixels));
  return image;
}

VaeShape tiny() { return {.width = 32, .multipliers = {1, 2}, .resnets = 1, .latent_channels = 4}; }

VaeShape small(double scale, double shift) {
  return {.width = 32, .multipliers = {1, 1, 2, 2}, .resnets = 1, .scale = scale, .shift = shift};
}

std::vector<float> means(const VaeShape& shape, std::int64_t batch, const std::vector<float>& moments) {
  std::vector<float> latent(moments.size() / 2);
  latent_mean(shape, batch, moments, latent);
  return latent;
}

std::vector<float> tiny_image() {
  std::vector<float> image = spec_values("input.image", 3 * 8 * 12, 0.5);
  for (float& value : image) value = std::clamp(value, -1.0F, 1.0F);
  return image;
}

}  // namespace

TEST_CASE("autoencoder: values of the original code on deterministic weights") {
  EncoderSpecWeights weights;
  const Size size{1, 8, 12};
  const std::vector<float> moments = encode(tiny(), size, tiny_image(), weights);
  const auto moment = [&](std::size_t c, std::size_t row, std::size_t col) {
    return moments.at(c * 24 + row * 6 + col);
  };
  CHECK(close(moment(0, 0, 0), 0.28020524));
  CHECK(close(moment(0, 0, 1), 0.13622306));
  CHECK(close(moment(0, 0, 2), 0.24060690));
  CHECK(close(moment(7, 3, 3), -0.58638018));
  CHECK(close(moment(7, 3, 4), -0.20307777));
  CHECK(close(moment(7, 3, 5), 0.12765974));

  const std::vector<float> latent = means(tiny(), 1, moments);
  CHECK(close(latent.at(2 * 24 + 6), 0.22571536));
  CHECK(close(latent.at(2 * 24 + 7), 0.08057704));
  CHECK(close(latent.at(2 * 24 + 8), -0.35142573));
  CHECK(std::fabs(std::accumulate(latent.begin(), latent.end(), 0.0) + 3.39987642) <= 1e-4);

  const std::vector<float> image = decode(tiny(), size, latent, weights);
  CHECK(close(image.at(0), 0.18924624));
  CHECK(close(image.at(1), 0.05121002));
  CHECK(close(image.at(2), 0.05212707));
  CHECK(close(image.at(2 * 96 + 93), 0.16347636));
  CHECK(close(image.at(2 * 96 + 94), 0.77945596));
  CHECK(close(image.at(2 * 96 + 95), 0.47091773));
  CHECK(std::fabs(std::accumulate(image.begin(), image.end(), 0.0) - 2.91004665) <= 1e-3);

  CHECK(weights.tensors() == 120);
  CHECK(weights.parameters() == 658283);
}

TEST_CASE("autoencoder: a batch gives what its samples give alone") {
  EncoderSpecWeights weights;
  std::vector<float> first(3 * 14 * 6), second(3 * 14 * 6);
  fill_random(first, 1, 0.5F);
  fill_random(second, 2, 0.5F);
  std::vector<float> both = first;
  both.insert(both.end(), second.begin(), second.end());
  std::vector<float> expected = encode(tiny(), {1, 14, 6}, first, weights);
  const std::vector<float> rest = encode(tiny(), {1, 14, 6}, second, weights);
  expected.insert(expected.end(), rest.begin(), rest.end());
  const std::vector<float> moments = encode(tiny(), {2, 14, 6}, both, weights);
  CHECK(relative_l2(moments, expected) <= 1e-6);

  const std::vector<float> latent = means(tiny(), 2, moments);
  const auto middle = latent.begin() + static_cast<std::ptrdiff_t>(latent.size() / 2);
  expected = decode(tiny(), {1, 14, 6}, {latent.begin(), middle}, weights);
  const std::vector<float> last = decode(tiny(), {1, 14, 6}, {middle, latent.end()}, weights);
  expected.insert(expected.end(), last.begin(), last.end());
  CHECK(relative_l2(decode(tiny(), {2, 14, 6}, latent, weights), expected) <= 1e-6);
}

TEST_CASE("autoencoder: sides that are no multiple of its factor are refused") {
  CHECK_THROWS_AS(vae::encode_workspace(tiny(), DType::F32, 1, 8, 9), std::logic_error);
  CHECK_THROWS_AS(vae::decode_workspace(tiny(), DType::F32, 1, 0, 8), std::logic_error);
}

TEST_CASE("autoencoder: golden file") {
  const SafetensorsFile io(std::string(TEST_DATA) + "/golden/ae_a_io.safetensors");
  const Checkpoint checkpoint = Checkpoint::open(std::string(TEST_DATA) + "/golden/ae_a.safetensors", Model::kVae);
  const VaeShape shape = small(0.3611, 0.1159);
  CheckpointWeights weights(checkpoint);
  const std::vector<float> moments = encode(shape, {1, 48, 32}, io.read_f32("image"), weights);
  CHECK(relative_l2(moments, io.read_f32("moments")) <= 1e-4);
  CHECK(relative_l2(means(shape, 1, moments), io.read_f32("latent_mean")) <= 1e-4);
  CHECK(relative_l2(decode(shape, {1, 48, 32}, io.read_f32("z"), weights), io.read_f32("decoded")) <= 1e-4);
}

TEST_CASE("autoencoder: recorded run of the miniature") {
  const SafetensorsFile io(std::string(ASSETS) + "/FLUX-mini_io.safetensors");
  const Checkpoint checkpoint = Checkpoint::open(std::string(ASSETS) + "/FLUX-mini", Model::kVae);
  const VaeShape shape = small(0.8925, 0.0499);
  CheckpointWeights weights(checkpoint);
  const std::vector<float> moments = encode(shape, {4, 128, 128}, io.read_f32("train_pixels"), weights);
  CHECK(relative_l2(moments, io.read_f32("train_moments")) <= 1e-4);
  std::vector<float> tokens(moments.size() / 2);
  pack_latent(means(shape, 4, moments), 16, 16, 16, tokens);
  CHECK(relative_l2(tokens, io.read_f32("train_latents")) <= 1e-4);

  const std::vector<float> packed = io.read_f32("latents_20");
  std::vector<float> latent(packed.size());
  unpack_latent(packed, 16, 16, 16, latent);
  CHECK(relative_l2(decode(shape, {3, 128, 128}, latent, weights), io.read_f32("image")) <= 1e-4);
}
