#include "engine/loaded_weights.h"

#include <filesystem>
#include <limits>

#include "engine/arena.h"
#include "io/safetensors.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using namespace squareq::test;

namespace {

// A text model of CLIP without layers and with a linear that is no part of it.
std::string write_model(const TempDir& folder, std::vector<float> embedding) {
  const std::vector<float> other{1.0F, 2.0F, 3.0F, 4.0F, 5.0F, 6.0F};
  const std::string path = folder.file("model.safetensors");
  const std::string prefix = "text_model.embeddings.";
  write_safetensors(path,
                    {{prefix + "token_embedding.weight", DType::F32, {2, 3}, std::as_bytes(std::span(embedding))},
                     {prefix + "position_embedding.weight", DType::F32, {3, 2}, std::as_bytes(std::span(other))}},
                    {});
  return path;
}

const char* const kName = "text_model.embeddings.token_embedding.weight";

// Loads the one tensor as a matrix of these sides.
std::vector<float> load(const std::string& path, std::int64_t rows, std::int64_t cols) {
  const Checkpoint checkpoint = Checkpoint::open(path, Model::kClip);
  const std::unique_ptr<Device> device = make_cpu_device(1);
  ConstView view;
  LoadedWeights weights(checkpoint, [&](WeightVisitor& visitor) { visitor.tensor(kName, view, rows, cols); });
  const Arena arena(*device, {.layout = [&](Carver& carver) { weights.layout(carver); }, .rehearse = [](Ops&) {}});
  CHECK(device->allocations() == 1);
  weights.upload(*device);
  REQUIRE((view.rows == rows && view.cols == cols));
  return {view.f32(), view.f32() + view.count()};
}

}  // namespace

TEST_CASE("loaded weights: what is bound and what is refused") {
  const TempDir folder;
  const std::vector<float> values{1.0F, 2.0F, 3.0F, 4.0F, 5.0F, 6.0F};
  const std::string path = write_model(folder, values);
  CHECK(load(path, 2, 3) == values);

  const std::string misshapen = message_of<FormatError>([&] { load(path, 3, 2); });
  CHECK(contains(misshapen, path));
  CHECK(contains(misshapen, kName));
  CHECK(contains(misshapen, "[2, 3]"));
  CHECK(contains(misshapen, "3 rows of 2 values"));
  CHECK(contains(message_of<FormatError>([&] { load(path, 1, 6); }), "[6]"));

  const Checkpoint checkpoint = Checkpoint::open(path, Model::kClip);
  Weight weight;
  LoadedWeights weights(checkpoint, [&](WeightVisitor& visitor) {
    visitor.linear("text_model.encoder.layers.0.mlp.fc1", weight, 2, 3, true);
  });
  Carver carver;
  const std::string missing = message_of<FormatError>([&] { weights.layout(carver); });
  CHECK(contains(missing, path));
  CHECK(contains(missing, "fc1"));
}

TEST_CASE("loaded weights: a file that was cut since it was opened is an error") {
  const TempDir folder;
  const std::string path = write_model(folder, {1.0F, 2.0F, 3.0F, 4.0F, 5.0F, 6.0F});
  const Checkpoint checkpoint = Checkpoint::open(path, Model::kClip);
  const std::unique_ptr<Device> device = make_cpu_device(1);
  ConstView view;
  LoadedWeights weights(checkpoint, [&](WeightVisitor& visitor) { visitor.tensor(kName, view, 2, 3); });
  const Arena arena(*device, {.layout = [&](Carver& carver) { weights.layout(carver); }, .rehearse = [](Ops&) {}});
  std::filesystem::resize_file(path, 16);
  CHECK(contains(message_of<FileError>([&] { weights.upload(*device); }), path));
}

TEST_CASE("loaded weights: values that are not finite are refused") {
  const TempDir folder;
  const std::string path = write_model(folder, {1.0F, 2.0F, std::numeric_limits<float>::quiet_NaN(), 4.0F, 5.0F, 6.0F});
  const std::string message = message_of<FormatError>([&] { load(path, 2, 3); });
  CHECK(contains(message, path));
  CHECK(contains(message, kName));
}
