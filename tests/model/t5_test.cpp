#include "model/t5.h"

#include <numeric>

#include "tests/model/encoder_harness.h"

using namespace squareq;
using namespace squareq::test;

namespace {

std::vector<float> encode(const T5Shape& shape, std::int64_t batch, const std::vector<std::int32_t>& ids,
                          WeightVisitor& weights) {
  t5::State state{.shape = shape, .batch = batch, .length = static_cast<std::int64_t>(ids.size()) / batch, .ids = ids};
  const std::vector<float> memory = carve([&](Carver& carver) { t5::layout(carver, state); });
  const auto ops = make_cpu_ops(2);
  for (const Stage& stage : t5::stages(state)) {
    stage.weights(weights);
    stage.forward(*ops, Pass::kForward);
  }
  return values_of(state.output);
}

T5Shape tiny() { return {.vocab = 128, .width = 48, .layers = 2, .heads = 4, .head_dim = 8, .mlp_hidden = 80}; }

std::vector<std::int32_t> tiny_ids() {
  std::vector<std::int32_t> ids;
  for (std::int32_t i = 0; i < 19; ++i) ids.push_back((7 * i * i + 3 * i + 5) % 125 + 3);
  ids.push_back(1);
  ids.resize(30, 0);
  return ids;
}

}  // namespace

TEST_CASE("T5: relative buckets") {
  const T5Shape shape;
  // Distances at which each further bucket begins (T5 with 32 buckets up to distance 128).
  const std::vector<std::int64_t> begins{0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91};
  for (std::size_t b = 0; b < begins.size(); ++b) {
    const auto bucket = static_cast<std::int32_t>(b);
    const std::int64_t last = b + 1 < begins.size() ? begins[b + 1] - 1 : 5000;
    CHECK(t5::relative_bucket(shape, -begins[b]) == bucket);
    CHECK(t5::relative_bucket(shape, -last) == bucket);
    if (b == 0) continue;
    CHECK(t5::relative_bucket(shape, begins[b]) == bucket + 16);
    CHECK(t5::relative_bucket(shape, last) == bucket + 16);
  }
}

TEST_CASE("T5: values of the original code on deterministic weights") {
  EncoderSpecWeights weights;
  const std::vector<float> out = encode(tiny(), 1, tiny_ids(), weights);
  CHECK(weights.tensors() == 21);
  CHECK(weights.parameters() == 41840);
  const auto at = [&](std::size_t row, std::size_t col) { return out.at(row * 48 + col); };
  CHECK(close(at(0, 0), 0.09652776));
  CHECK(close(at(0, 1), 0.34883787));
  CHECK(close(at(0, 2), 1.34628584));
  CHECK(close(at(12, 0), -1.49808450));
  CHECK(close(at(12, 1), 0.87883583));
  CHECK(close(at(12, 2), 0.23800211));
  CHECK(close(at(29, 45), -0.67093613));
  CHECK(close(at(29, 46), 0.32229466));
  CHECK(close(at(29, 47), 0.46129889));
  CHECK(std::fabs(std::accumulate(out.begin(), out.end(), 0.0) - 43.18993608) <= 1e-3);
}

TEST_CASE("T5: a batch gives what its samples give alone") {
  EncoderSpecWeights weights;
  const std::vector<std::int32_t> first = tiny_ids();
  std::vector<std::int32_t> second(first.rbegin(), first.rend());
  std::vector<std::int32_t> both = first;
  both.insert(both.end(), second.begin(), second.end());
  std::vector<float> expected = encode(tiny(), 1, first, weights);
  const std::vector<float> rest = encode(tiny(), 1, second, weights);
  expected.insert(expected.end(), rest.begin(), rest.end());
  CHECK(relative_l2(encode(tiny(), 2, both, weights), expected) <= 1e-6);
}

TEST_CASE("T5: golden file") {
  const std::string model = std::string(TEST_DATA) + "/golden/t5_a.safetensors";
  const SafetensorsFile io(std::string(TEST_DATA) + "/golden/t5_a_io.safetensors");
  const T5Shape shape{.vocab = 100, .width = 48, .layers = 3, .heads = 4, .head_dim = 16, .mlp_hidden = 80};
  const Checkpoint checkpoint = Checkpoint::open(model, Model::kT5);
  CheckpointWeights weights(checkpoint);
  CHECK(relative_l2(encode(shape, 2, read_ids(io, "ids"), weights), io.read_f32("last_hidden")) <= 1e-4);
}

TEST_CASE("T5: recorded run of the miniature") {
  const SafetensorsFile io(std::string(ASSETS) + "/FLUX-mini_io.safetensors");
  const T5Shape shape{.vocab = 1024, .width = 128, .layers = 3, .heads = 4, .head_dim = 32, .mlp_hidden = 256};
  const Checkpoint checkpoint = Checkpoint::open(std::string(ASSETS) + "/FLUX-mini", Model::kT5);
  CheckpointWeights weights(checkpoint);
  CHECK(relative_l2(encode(shape, 3, read_ids(io, "t5_ids"), weights), io.read_f32("t5_out")) <= 1e-4);
  CHECK(relative_l2(encode(shape, 4, read_ids(io, "train_t5_ids"), weights), io.read_f32("train_t5_out")) <= 1e-4);
}
