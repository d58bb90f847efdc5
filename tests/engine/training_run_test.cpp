#include "engine/training_run.h"

#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "io/file.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/engine/tiny_run.h"

using namespace squareq;
using namespace squareq::test;

namespace {

namespace fs = std::filesystem;

// Everything that has a memory is on.
TrainConfig busy_config(const TinyRun& bench) {
  TrainConfig config = small_config();
  config.output_dir = bench.folder.file("out");
  config.timestamps = false;
  config.save_every = 5;
  config.lora.rank_dropout = 0.2;
  config.training.batch_size = 2;
  config.training.accumulation = 2;
  config.training.optimizer = TrainingConfig::Optimizer::kAdamW8Bit;
  config.training.ema_decay = 0.9;
  config.validation.every = 4;
  config.validation.draws = 2;
  return config;
}

// One process's share of a run: until step `until`, or to its end.
std::int64_t run(TinyRun& bench, const TrainConfig& config, std::int64_t until = -1,
                 std::optional<float> value = std::nullopt) {
  TrainingRun run(*bench.device, *bench.slab, config,
                  {.data = random_set(value), .validation = random_set(), .previews = {}, .shift = {}});
  std::atomic<bool> stop = until == run.trainer().progress().step;
  // Stops as a signal would: while a step computes.
  class Stopper : public spdlog::sinks::base_sink<std::mutex> {
   public:
    Stopper(std::string line, std::atomic<bool>& stop) : line_(std::move(line)), stop_(stop) {}

   private:
    void sink_it_(const spdlog::details::log_msg& message) override {
      if (contains(std::string_view(message.payload.data(), message.payload.size()), line_)) stop_ = true;
    }
    void flush_() override {}
    std::string line_;
    std::atomic<bool>& stop_;
  };
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("test", std::make_shared<Stopper>("step " + std::to_string(until) + "/", stop)));
  try {
    const std::int64_t done = run.run(stop);
    spdlog::set_default_logger(before);
    return done;
  } catch (...) {
    spdlog::set_default_logger(before);
    throw;
  }
}

std::map<std::string, std::string> files_in(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) files[entry.path().filename().string()] = read_file(entry.path().string());
  }
  return files;
}

std::vector<std::string> names_of(const std::map<std::string, std::string>& files) {
  std::vector<std::string> names;
  for (const auto& [name, content] : files) names.push_back(name);
  return names;
}

}  // namespace

TEST_CASE("a run that is stopped and goes on, at any step, ends in the same files") {
  TinyRun bench;
  const TrainConfig config = busy_config(bench);
  REQUIRE(run(bench, config) == 12);
  const auto expected = files_in(config.output_dir);
  CHECK(names_of(expected) == std::vector<std::string>{"events.out.tfevents.lora", "lora-000005.safetensors",
                                                       "lora-000010.safetensors", "lora-000010.state",
                                                       "lora-000012.state", "lora-loss.svg", "lora.safetensors",
                                                       "metrics.jsonl"});
  std::istringstream rows(expected.at("metrics.jsonl"));
  std::int64_t steps = 0, validations = 0;
  for (std::string row; std::getline(rows, row);) ++(nlohmann::json::parse(row).contains("loss") ? steps : validations);
  CHECK(steps == 12);
  CHECK(validations == 4);  // before step 1, after 4, 8 and 12

  for (const std::vector<std::int64_t>& stops : {std::vector<std::int64_t>{0}, {4}, {5, 6}, {1, 2, 3, 11}}) {
    fs::remove_all(config.output_dir);
    for (const std::int64_t stop : stops) {
      CHECK(run(bench, config, stop) == stop);
      CHECK(fs::exists(state_path(config.output_dir, "lora", stop)));
    }
    CHECK(run(bench, config) == 12);
    CHECK((files_in(config.output_dir) == expected));
  }

  SECTION("taken up again when it is over, it writes them once more") {
    CHECK(run(bench, config) == 12);
    CHECK((files_in(config.output_dir) == expected));
  }
  SECTION("or it starts anew") {
    TrainConfig anew = config;
    anew.resume = "off";
    CHECK(run(bench, anew, 2) == 2);
    CHECK(find_states(config.output_dir, "lora").size() == 1);
  }
}

TEST_CASE("a stopped run leaves its LoRA, which goes when the run has gone on") {
  TinyRun bench;
  const TrainConfig config = busy_config(bench);
  run(bench, config, 3);
  CHECK(fs::exists(config.output_dir + "/lora-000003.safetensors"));
  CHECK_FALSE(fs::exists(config.output_dir + "/lora.safetensors"));
  run(bench, config, 7);
  CHECK_FALSE(fs::exists(config.output_dir + "/lora-000003.safetensors"));
  CHECK_FALSE(fs::exists(state_path(config.output_dir, "lora", 3)));
  CHECK(fs::exists(state_path(config.output_dir, "lora", 5)));
}

TEST_CASE("a run goes on from an older state where the newest is damaged") {
  TinyRun bench;
  const TrainConfig config = busy_config(bench);
  run(bench, config);
  const auto expected = files_in(config.output_dir);
  const std::string newest = state_path(config.output_dir, "lora", 12);
  for (const std::size_t at : {std::size_t{40}, expected.at("lora-000012.state").size() - 100}) {
    std::string damaged = expected.at("lora-000012.state");
    damaged[at] = static_cast<char>(damaged[at] ^ 1);
    write_file(newest, damaged);
    CHECK_FALSE(message_of<FormatError>([&] { StateFile file(newest); }).empty());
    CHECK(run(bench, config) == 12);
    CHECK((files_in(config.output_dir) == expected));
  }
  write_file(newest, expected.at("lora-000012.state").substr(0, 5000));
  CHECK(run(bench, config) == 12);
  CHECK((files_in(config.output_dir) == expected));
  TrainConfig other = config;
  other.resume = bench.folder.file("none.state");
  CHECK(contains(message_of<FileError>([&] { run(bench, other); }), "none.state"));
  other.resume = config.output_dir + "/lora.safetensors";
  CHECK(contains(message_of<FormatError>([&] { run(bench, other); }), "another kind of file"));
}

TEST_CASE("a changed setting is refused where it changes what is trained") {
  TinyRun bench;
  const TrainConfig config = busy_config(bench);
  run(bench, config, 5);
  const auto refusal = [&](auto change) {
    TrainConfig changed = config;
    change(changed);
    return message_of<ConfigError>([&] { run(bench, changed, 5); });
  };
  CHECK(contains(refusal([](TrainConfig& c) { c.lora.rank = 8; }), "lora.rank"));
  CHECK(contains(refusal([](TrainConfig& c) { c.training.seed = 1; }), "training.seed"));
  CHECK(contains(refusal([](TrainConfig& c) { c.training.accumulation = 4; }), "training.accumulation"));
  CHECK(contains(refusal([](TrainConfig& c) { c.training.ema_decay = 0.0; }), "training.ema_decay"));
  CHECK(contains(refusal([](TrainConfig& c) { c.data.flip = true; }), "data.flip"));
  CHECK(refusal([](TrainConfig& c) { c.training.learning_rate = 1e-3; }).empty());
  CHECK(refusal([](TrainConfig& c) { c.training.steps = 20; }).empty());
  CHECK(refusal([](TrainConfig& c) { c.threads = 1; }).empty());

  TinyRun other;
  synthesize_slab(tiny_shape(), other.folder.file("other.slab"), {.seed = 9});
  const Slab slab(other.folder.file("other.slab"));
  CHECK(contains(message_of<ConfigError>([&] {
                   TrainingRun(*bench.device, slab, config,
                               {.data = random_set(), .validation = {}, .previews = {}, .shift = {}});
                 }),
                 "other weights"));
  TrainingSet data = random_set();
  data.identity = "other";
  CHECK(contains(message_of<ConfigError>([&] {
                   TrainingRun(*bench.device, *bench.slab, config,
                               {.data = std::move(data), .validation = {}, .previews = {}, .shift = {}});
                 }),
                 "other data"));
}

TEST_CASE("too many skipped steps in a row stop the run with a saved state") {
  TinyRun bench;
  TrainConfig config = busy_config(bench);
  config.training.max_skips = 3;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::string message = message_of<NumericError>([&] { run(bench, config, -1, nan); });
  CHECK(contains(message, "training step 4"));
  CHECK(contains(message, "loss nan"));
  const StateFile file(state_path(config.output_dir, "lora", 4));
  CHECK(file.state().progress.skipped == 4);
  CHECK(file.state().progress.updates == 0);
  CHECK(run(bench, config) == 12);  // with good data it goes on
}

TEST_CASE("a slab that is cut while a run computes stops it with a state, from which it goes on") {
  TinyRun bench;
  TrainConfig config = busy_config(bench);
  const std::string slab = bench.folder.file("tiny.slab");
  const std::string content = read_file(slab);
  TrainingSet data = random_set();
  const auto load = data.load;
  std::atomic<int> loaded = 0;
  data.load = [&](const Draw& draw) {
    if (++loaded == 17) fs::resize_file(slab, 4096);  // in the fifth of 12 steps of 2 batches of 2, or ahead of it
    return load(draw);
  };
  {
    TrainingRun run(*bench.device, *bench.slab, config,
                    {.data = std::move(data), .validation = random_set(), .previews = {}, .shift = {}});
    const std::atomic<bool> stop = false;
    CHECK(contains(message_of<FileError>([&] { run.run(stop); }), slab));
  }
  const std::vector<SavedState> states = find_states(config.output_dir, config.name);
  REQUIRE(!states.empty());
  CHECK(states.front().step < 12);
  write_file(slab, content);
  bench.slab = std::make_unique<Slab>(slab);
  CHECK(run(bench, config) == 12);
  TinyRun whole;
  const TrainConfig other = busy_config(whole);
  CHECK(run(whole, other) == 12);
  CHECK(read_file(config.output_dir + "/lora.safetensors") == read_file(other.output_dir + "/lora.safetensors"));
}

TEST_CASE("what killed processes left behind is cleared away") {
  TinyRun bench;
  const TrainConfig config = busy_config(bench);
  fs::create_directories(config.output_dir);
  const std::string gone = config.output_dir + "/.lora.state.999999999-0.tmp";
  const std::string own = config.output_dir + "/.lora.state." + std::to_string(getpid()) + "-0.tmp";
  const std::string others = config.output_dir + "/.notes.tmp";
  for (const std::string& file : {gone, own, others}) write_file(file, "x");
  run(bench, config, 1);
  CHECK_FALSE(fs::exists(gone));
  CHECK(fs::exists(own));
  CHECK(fs::exists(others));
}
