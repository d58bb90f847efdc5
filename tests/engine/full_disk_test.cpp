// Whoever writes a file on a full disk says which, and leaves nothing half-written under its name.
#include <array>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "engine/cache.h"
#include "engine/metrics.h"
#include "io/checkpoint.h"
#include "io/file.h"
#include "io/image.h"
#include "io/lora_file.h"
#include "io/safetensors.h"
#include "io/slab_build.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/engine/tiny_run.h"
#include "tests/small_disk.h"

using namespace squareq;
using squareq::test::contains;
using squareq::test::message_of;
using squareq::test::small_config;
using squareq::test::SmallDisk;
using squareq::test::TinyRun;

namespace {

std::vector<float> noise(std::size_t count) {
  std::vector<float> values(count);
  test::fill_random(values, 1);
  return values;
}

// `write` makes more bytes than the disk has; part of them fit.
template <class Write>
void check_too_large(const std::string& name, Write write) {
  const SmallDisk disk(64);
  SKIP_UNLESS_MOUNTED(disk)
  const std::string message = message_of<FileError>([&] { write(disk.file(name)); });
  INFO(message);
  CHECK(contains(message, disk.file(name)));
  CHECK((contains(message, "No space left") || contains(message, "free disk space")));
  CHECK(disk.files() == 0);
}

}  // namespace

TEST_CASE("full disk: files") {
  check_too_large("a.txt", [](const std::string& path) { write_atomically(path, std::string(1 << 20, 'x')); });
}

TEST_CASE("full disk: safetensors") {
  check_too_large("a.safetensors", [](const std::string& path) {
    const std::vector<float> values = noise(100'000);
    write_safetensors(path, {{"a", DType::F32, {100'000}, std::as_bytes(std::span(values))}}, {});
  });
}

TEST_CASE("full disk: LoRA files") {
  check_too_large("a.safetensors", [](const std::string& path) {
    const std::string model = std::string(TEST_DATA) + "/golden/flux_a.safetensors";
    const FluxShape shape = flux_shape(Checkpoint::open(model, Model::kTransformer));
    std::vector<LoraAdapter> adapters;
    for (const LinearSize& linear : flux_linears(shape)) {
      const auto [rank, in, out] = std::array{std::int64_t{16}, linear.in, linear.out};
      adapters.push_back({linear.name, 0, out, in, rank, 16.0F, noise(static_cast<std::size_t>(rank * in)),
                          noise(static_cast<std::size_t>(out * rank))});
    }
    write_lora(path, adapters, shape, LoraNaming::kKohya, DType::F32, {});
  });
}

TEST_CASE("full disk: PNG") {
  check_too_large("a.png", [](const std::string& path) {
    Image image{.width = 256, .height = 256, .rgb = {}};
    for (const float value : noise(256 * 256 * 3))
      image.rgb.push_back(static_cast<std::uint8_t>(std::lround(value * 40.0F) & 255));
    write_png(path, image);
  });
}

TEST_CASE("full disk: records of the cache") {
  const SmallDisk disk(64);
  SKIP_UNLESS_MOUNTED(disk)
  const Cache cache(disk.file("cache"));
  const CacheKey key =
      latent_key({.image = "picture", .vae = "vae", .width = 128, .height = 64, .mode = "mean", .mask = {}});
  const Record record{{"latent", {DType::F32, {100'000}, noise(100'000)}}};
  CHECK(contains(message_of<FileError>([&] { cache.store(key, record); }), disk.file("cache/" + key.file_name())));
  CHECK(disk.files() == 0);
  CHECK_FALSE(cache.load(key));
}

TEST_CASE("full disk: loss curve and metrics") {
  const SmallDisk disk(64);
  SKIP_UNLESS_MOUNTED(disk)
  Metrics metrics({.folder = disk.file(""), .total_steps = 1000});
  StepMetrics step{.step = 1, .loss = 0.5};
  metrics.record(step);
  disk.fill();
  CHECK(
      contains(message_of<FileError>([&] { write_loss_curve(disk.file("loss.svg"), std::vector<double>{0.5}, "run"); }),
               disk.file("loss.svg")));
  CHECK(disk.files() == 2);
  // The pages that the first records lie in have room for some more.
  std::string message;
  while (message.empty() && step.step < 1000) {
    message = message_of<FileError>([&] {
      ++step.step;
      metrics.record(step);
    });
  }
  CHECK((contains(message, disk.file("metrics.jsonl")) || contains(message, disk.file("events.out.tfevents.lora"))));
  std::istringstream lines(test::read_file(disk.file("metrics.jsonl")));
  std::int64_t count = 0;
  for (std::string line; std::getline(lines, line); ++count) CHECK(nlohmann::json::accept(line));
  CHECK((count == step.step - 1 || count == step.step));
}

TEST_CASE("full disk: states") {
  TinyRun bench;
  Trainer trainer = bench.trainer(small_config());
  check_too_large("lora-000000.state", [&](const std::string& path) {
    save_state(path, *bench.device, trainer.engine().lora(), {.progress = trainer.progress()});
  });
}

TEST_CASE("full disk: slabs and synthetic checkpoints") {
  const SlabShape mini = named_shape("mini");
  check_too_large("a.slab", [&](const std::string& path) { synthesize_slab(mini, path); });
  const SmallDisk disk(64);
  SKIP_UNLESS_MOUNTED(disk)
  CHECK(contains(message_of<FileError>([&] { synthesize_checkpoint(mini, disk.file("model")); }), disk.file("model")));
  CHECK(disk.files() == 0);
}

TEST_CASE("full disk: a build that runs out of room goes on when there is some") {
  const SmallDisk disk(2048);
  SKIP_UNLESS_MOUNTED(disk)
  const Checkpoint checkpoint =
      Checkpoint::open(std::string(TEST_DATA) + "/golden/flux_a.safetensors", Model::kTransformer);
  const FluxShape shape = flux_shape(checkpoint);
  const std::string path = disk.file("a.slab");
  int blocks = 0;
  const SlabOptions meanwhile_full{.threads = 1, .progress = [&](const SlabProgress&) {
                                     if (++blocks == 3) disk.fill();
                                   }};
  const std::string message = message_of<FileError>([&] { build_slab(checkpoint, shape, path, meanwhile_full); });
  CHECK(contains(message, path));
  CHECK(contains(message, "goes on where it stopped"));
  CHECK_FALSE(std::filesystem::exists(path));
  disk.free();
  std::uint64_t resumed = 0;
  build_slab(checkpoint, shape, path, {.threads = 1, .progress = [&](const SlabProgress& p) { resumed = p.resumed; }});
  CHECK(resumed > 0);
  build_slab(checkpoint, shape, disk.file("again.slab"));
  CHECK(test::read_file(path) == test::read_file(disk.file("again.slab")));
  CHECK(disk.files() == 2);
}
