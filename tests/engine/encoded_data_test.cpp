// From pictures on disk to batches that are trained on, with the bundled miniature.
#include "engine/encoded_data.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "engine/encoding.h"
#include "engine/evaluation.h"
#include "engine/flow_batch.h"
#include "engine/pipeline.h"
#include "engine/trainer.h"
#include "io/slab_build.h"
#include "tests/catch.h"
#include "tests/engine/memory_set.h"
#include "tests/engine/picture_folder.h"
#include "tests/engine/tiny_model.h"

using namespace squareq;
using namespace squareq::test;

namespace {

namespace fs = std::filesystem;

// Wide and square pictures, one of which has a mask whose right half is black.
struct Fixture {
  PictureFolder pictures, masks, cache;
  std::unique_ptr<Device> device = make_cpu_device(2);
  TrainConfig config;

  Fixture() {
    pictures.add("a.png", 96, 64, "red, round, small", 1);
    pictures.add("b.png", 64, 64, "blue", 2);
    Image mask{64, 64, {}, {}};
    for (int i = 0; i < 64 * 64; ++i) mask.rgb.insert(mask.rgb.end(), 3, i % 64 < 32 ? 255 : 0);
    write_png(masks.file("b.png"), mask);
    config.model = std::string(ASSETS) + "/FLUX-mini";
    config.cache_dir = cache.path();
    config.data = pictures.data();
    FolderConfig& folder = config.data.folders[0];
    folder.mask_folder = masks.path();
    folder.flip = true;
    folder.caption_dropout = 0.5;
    folder.tag_orders = 2;
    folder.weight = 3.0;
    folder.regularisation = true;
    config.data.prior_weight = 0.5;
  }

  EncodedData data() const {
    Dataset dataset = inspect_dataset(config.data, 2, Inspection::kHeaders);
    require_trainable(dataset);
    return EncodedData(config, configured_parts(config), std::move(dataset), 16);
  }

  void encode(const EncodedData& data) const {
    const CachedTexts texts(config, configured_parts(config), 16);
    Encoding(*device, {&data}, texts).run();
  }

  std::vector<std::string> records() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(cache.path())) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }
};

}  // namespace

TEST_CASE("encoded data: samples come back from the cache in every variant", "[slow]") {
  const Fixture fixture;
  EncodedData data = fixture.data();
  CHECK(message_of<FileError>([&] { data.load({}); }).find("gone or damaged") != std::string::npos);
  fixture.encode(data);
  const TrainingSet set = data.training_set();
  REQUIRE(set.grids.size() == 2);
  CHECK((set.grids[0].rows == 3 && set.grids[0].cols == 5));
  CHECK((set.grids[1].rows == 4 && set.grids[1].cols == 4));
  REQUIRE(set.samples.size() == 2);
  CHECK(set.samples[0].captions == 2);

  const EncodedExample plain = data.load({.sample = 1});
  const EncodedExample flipped = data.load({.sample = 1, .flip = true});
  const EncodedExample other = data.load({.sample = 0, .caption = 1});
  const EncodedExample empty = data.load({.sample = 0, .caption = 2});
  CHECK(plain.latent.size() == 16 * 64);
  CHECK(other.latent.size() == 15 * 64);
  CHECK(plain.weight == 1.5);
  const std::vector<float> left{2, 2, 0, 0, 2, 2, 0, 0, 2, 2, 0, 0, 2, 2, 0, 0};
  CHECK(plain.token_weights == left);
  CHECK(flipped.token_weights == std::vector<float>(left.rbegin(), left.rend()));
  CHECK(other.token_weights.empty());
  CHECK(plain.latent != flipped.latent);
  CHECK(plain.text == flipped.text);
  CHECK(data.load({.sample = 0}).text != other.text);
  CHECK(empty.text != other.text);
  CHECK(empty.text == data.load({.sample = 1, .caption = 2}).text);

  SECTION("and what is there is not computed again") {
    const std::vector<std::string> records = fixture.records();
    fs::remove(fixture.cache.file(records.front()));  // the encoding was interrupted
    const auto time = fs::last_write_time(fixture.cache.file(records.back()));
    EncodedData again = fixture.data();
    fixture.encode(again);
    CHECK(fixture.records() == records);
    CHECK(fs::last_write_time(fixture.cache.file(records.back())) == time);
    CHECK(again.load({.sample = 1}).latent == plain.latent);
  }
  SECTION("and what changed is") {
    fixture.pictures.add("b.png", 64, 64, "green", 7);
    EncodedData changed = fixture.data();
    CHECK_THROWS_AS(changed.load({.sample = 1}), FileError);
    fixture.encode(changed);
    CHECK(changed.load({.sample = 1}).latent != plain.latent);
    CHECK(changed.load({.sample = 1}).text != plain.text);
    CHECK(data.load({.sample = 1}).latent == plain.latent);  // the old records are still there
  }
}

TEST_CASE("training on buckets: batches take their shape, and repeat bit for bit") {
  const TempDir folder;
  const std::unique_ptr<Device> device = make_cpu_device(2);
  synthesize_slab(tiny_shape(), folder.file("tiny.slab"));
  const Slab slab(folder.file("tiny.slab"));
  const std::vector<Grid> grids{{.rows = 2, .cols = 3}, {.rows = 4, .cols = 2}};
  const auto set = [&] {
    return memory_set(grids, {{.bucket = 0}, {.bucket = 1}, {.bucket = 1}},
                      {random_example(grids[0], 1), random_example(grids[1], 2), random_example(grids[1], 3)});
  };
  TrainConfig config;
  config.lora.rank = 2;
  config.lora.alpha = 2.0;
  config.training.batch_size = 2;
  const auto losses = [&] {
    const TrainingSet data = set();
    Trainer trainer(*device, slab, config, data, {}, training_run(config, slab.flux_shape(), sequences_of(data)));
    std::vector<double> found;
    for (std::int64_t step = 1; step <= 6; ++step) found.push_back(trainer.step().loss);
    return found;
  };
  const std::vector<double> first = losses();
  CHECK(losses() == first);
  for (const double loss : first) CHECK(loss > 0.0);

  // The mean over all is that of the buckets alone, weighted by their samples.
  const auto fixed = [&](const TrainingSet& data) {
    FluxEngine engine(*device, slab,
                      {.batch = 2, .sequences = sequences_of(data), .wanted = {}, .keep = Keep::kNothing, .lora = {}});
    return fixed_draw_loss(engine, data, 0, 4, 1.0);
  };
  const double only_first = fixed(memory_set({grids[0]}, {{}}, {random_example(grids[0], 1)}));
  TrainingSet all = set();
  const double whole = fixed(all);
  CHECK(std::fabs(whole - only_first) > 1e-4);
  all.samples.resize(1);
  CHECK(fixed(all) == only_first);
}

TEST_CASE("a mask decides where a batch learns, and a weight how much") {
  const TempDir folder;
  const std::unique_ptr<Device> device = make_cpu_device(2);
  synthesize_slab(tiny_shape(), folder.file("tiny.slab"));
  const Slab slab(folder.file("tiny.slab"));
  const Grid grid{.rows = 2, .cols = 3};
  FluxEngine engine(
      *device, slab,
      {.batch = 2, .sequences = {make_sequence(5, grid)}, .wanted = {}, .keep = Keep::kNothing, .lora = {}});
  FlowBatch batch(engine);
  const std::vector<float> noise(6 * 16, 0.5F);
  const auto losses = [&](const std::vector<float>& weights, double weight) {
    EncodedExample example = random_example(grid, 1);
    example.token_weights = weights;
    example.weight = weight;
    const EncodedExample other = random_example(grid, 1);
    batch.set(0, {.example = example, .noise = noise, .sigma = 0.5});
    batch.set(1, {.example = other, .noise = noise, .sigma = 0.5});
    return batch.forward();
  };
  const std::vector<float> plain = losses({}, 1.0);
  CHECK(std::fabs(plain[0] - plain[1]) <= 1e-5F * plain[0]);
  CHECK(losses({1, 1, 1, 1, 1, 1}, 1.0) == plain);
  CHECK(std::fabs(losses({}, 0.25)[0] - 0.25F * plain[0]) <= 1e-6F * plain[0]);
  const std::vector<float> some = losses({0, 2, 0, 2, 0, 2}, 1.0);
  const std::vector<float> rest = losses({2, 0, 2, 0, 2, 0}, 1.0);
  CHECK(some[1] == plain[1]);
  CHECK(std::fabs(some[0] - rest[0]) > 1e-4F * plain[0]);
  CHECK(std::fabs(0.5F * (some[0] + rest[0]) - plain[0]) <= 1e-5F * plain[0]);
}
