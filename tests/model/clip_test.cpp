#include "model/clip.h"

#include <numeric>

#include "kernels/base/error.h"
#include "tests/model/encoder_harness.h"

using namespace squareq;
using namespace squareq::test;

namespace {

struct Encoded {
  std::vector<float> last_hidden, pooled;
};

Encoded encode(const ClipShape& shape, std::int64_t batch, const std::vector<std::int32_t>& ids,
               WeightVisitor& visitor) {
  clip::Weights weights;
  clip::weights(visitor, shape, weights);
  const std::int64_t length = static_cast<std::int64_t>(ids.size()) / batch;
  clip::Scratch scratch;
  View last_hidden, pooled;
  const std::vector<float> memory = carve([&](Carver& carver) {
    clip::layout(carver, shape, DType::F32, batch, length, scratch);
    last_hidden = carver.take(DType::F32, batch, length, shape.width);
    pooled = carver.take(DType::F32, batch, 1, shape.width);
  });
  const auto ops = make_cpu_ops(2);
  clip::forward(*ops, shape, weights, ids, scratch, last_hidden, pooled);
  return {values_of(last_hidden), values_of(pooled)};
}

ClipShape tiny() { return {.vocab = 320, .width = 24, .layers = 2, .heads = 2, .mlp_hidden = 96, .eos = 319}; }

std::vector<std::int32_t> tiny_ids() {
  std::vector<std::int32_t> ids{318};
  for (std::int32_t i = 0; i < 9; ++i) ids.push_back((11 * i * i + i + 2) % 317);
  ids.resize(77, 319);
  return ids;
}

}  // namespace

TEST_CASE("CLIP: values of the original code on deterministic weights") {
  EncoderSpecWeights weights;
  const Encoded out = encode(tiny(), 1, tiny_ids(), weights);
  const std::vector<double> pooled{-1.57441754, 1.08429206, 0.02465537, -1.63727717};
  for (std::size_t i = 0; i < pooled.size(); ++i) CHECK(close(out.pooled.at(i), pooled[i]));
  CHECK(
      close(std::sqrt(std::inner_product(out.pooled.begin(), out.pooled.end(), out.pooled.begin(), 0.0)), 4.69875515));
  CHECK(close(out.last_hidden.at(0), 0.61899793));
  CHECK(close(out.last_hidden.at(1), 0.73701125));
}

TEST_CASE("CLIP: a short batch gives what its samples give alone") {
  EncoderSpecWeights weights;
  const std::vector<std::int32_t> both{318, 5, 9, 319, 319, 318, 40, 319, 319, 319};
  const Encoded first = encode(tiny(), 1, {both.begin(), both.begin() + 5}, weights);
  const Encoded second = encode(tiny(), 1, {both.begin() + 5, both.end()}, weights);
  std::vector<float> expected = first.pooled;
  expected.insert(expected.end(), second.pooled.begin(), second.pooled.end());
  CHECK(relative_l2(encode(tiny(), 2, both, weights).pooled, expected) <= 1e-6);
}

TEST_CASE("CLIP: where the pooled state is") {
  ClipShape shape{.eos = 7};
  CHECK(clip::end_position(shape, std::vector<std::int32_t>{1, 9, 7, 7}) == 2);
  shape.eos = -1;
  CHECK(clip::end_position(shape, std::vector<std::int32_t>{1, 9, 7, 9}) == 1);
  shape.eos = 5;
  const auto missing = [&] { clip::end_position(shape, std::vector<std::int32_t>{1, 9, 7, 9}); };
  CHECK(contains(message_of<FormatError>(missing), "no end token"));
}

TEST_CASE("CLIP: golden file") {
  const SafetensorsFile io(std::string(TEST_DATA) + "/golden/clip_a_io.safetensors");
  const ClipShape shape{.vocab = 120, .width = 48, .layers = 3, .heads = 4, .mlp_hidden = 96, .eos = 119};
  const Checkpoint checkpoint = Checkpoint::open(std::string(TEST_DATA) + "/golden/clip_a.safetensors", Model::kClip);
  CheckpointWeights weights(checkpoint);
  const Encoded out = encode(shape, 2, read_ids(io, "ids"), weights);
  CHECK(relative_l2(out.last_hidden, io.read_f32("last_hidden")) <= 1e-4);
  CHECK(relative_l2(out.pooled, io.read_f32("pooled")) <= 1e-4);
}

TEST_CASE("CLIP: recorded run of the miniature") {
  const SafetensorsFile io(std::string(ASSETS) + "/FLUX-mini_io.safetensors");
  const ClipShape shape{.vocab = 1026, .width = 64, .layers = 2, .heads = 2, .mlp_hidden = 256};
  const Checkpoint checkpoint = Checkpoint::open(std::string(ASSETS) + "/FLUX-mini", Model::kClip);
  CheckpointWeights weights(checkpoint);
  CHECK(relative_l2(encode(shape, 3, read_ids(io, "clip_ids"), weights).pooled, io.read_f32("clip_pooled")) <= 1e-4);
  CHECK(relative_l2(encode(shape, 4, read_ids(io, "train_clip_ids"), weights).pooled,
                    io.read_f32("train_clip_pooled")) <= 1e-4);
}
