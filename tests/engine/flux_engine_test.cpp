#include "engine/flux_engine.h"

#include <filesystem>
#include <set>

#include "engine/flow_batch.h"
#include "engine/lora_targets.h"
#include "io/slab_build.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/engine/tiny_model.h"
#include "tests/support.h"

using namespace squareq;
using namespace squareq::test;

namespace {

struct Setup : TinySlab {
  FluxRun run(std::vector<Sequence> sequences) const {
    LoraConfig lora;
    lora.rank = 4;
    lora.alpha = 4.0;
    return {.batch = 2,
            .sequences = std::move(sequences),
            .wanted = {.gradients = true},
            .keep = Keep::kCheckpoint,
            .lora = select_lora_targets(lora, slab->flux_shape())};
  }
};

// Forward and backward of a random batch of the selected sequence; losses, then the gradients so far.
std::vector<float> pass(FluxEngine& engine) {
  const flux::State& state = engine.state();
  FlowBatch batch(engine);
  for (std::int64_t slot = 0; slot < state.batch; ++slot) {
    EncodedExample example{.latent = std::vector<float>(static_cast<std::size_t>(state.img.rows * state.img.cols)),
                           .text = std::vector<float>(static_cast<std::size_t>(state.txt.rows * state.txt.cols)),
                           .pooled = std::vector<float>(static_cast<std::size_t>(state.y.cols))};
    std::vector<float> noise(example.latent.size());
    std::uint32_t stream = static_cast<std::uint32_t>(10 * slot);
    for (std::vector<float>* values : {&example.latent, &example.text, &example.pooled, &noise}) {
      fill_random(*values, stream++);
    }
    batch.set(slot, {.example = example, .noise = noise, .sigma = 0.4});
  }
  std::vector<float> result = batch.forward_backward(0.5);
  const View gradients = engine.lora().gradients();
  result.insert(result.end(), gradients.f32(), gradients.f32() + gradients.count());
  return result;
}

}  // namespace

TEST_CASE("an engine of several shapes computes in each what an engine of that shape alone does") {
  const Setup setup;
  const std::vector<Sequence> sequences{make_sequence(5, {.rows = 2, .cols = 3}),
                                        make_sequence(9, {.rows = 4, .cols = 2}),
                                        make_sequence(3, {.rows = 1, .cols = 1})};
  FluxEngine all(*setup.device, *setup.slab, setup.run(sequences));
  all.initialise_lora(LoraInit::kKaiming, 1);
  const std::byte* parameters = all.lora().parameters().data;
  for (const std::size_t i : {1U, 0U, 2U, 1U}) {
    FluxEngine alone(*setup.device, *setup.slab, setup.run({sequences[i]}));
    alone.initialise_lora(LoraInit::kKaiming, 1);
    all.select(i);
    all.zero_gradients();
    INFO("sequence " << i);
    CHECK(pass(all) == pass(alone));
  }
  CHECK(all.lora().parameters().data == parameters);
}

TEST_CASE("gradients accumulate over batches of different shapes") {
  const Setup setup;
  const std::vector<Sequence> sequences{make_sequence(5, {.rows = 2, .cols = 3}),
                                        make_sequence(7, {.rows = 1, .cols = 4})};
  FluxEngine engine(*setup.device, *setup.slab, setup.run(sequences));
  engine.initialise_lora(LoraInit::kKaiming, 1);
  const auto gradients = [&](const std::vector<std::size_t>& order) {
    engine.zero_gradients();
    std::vector<float> last;
    for (const std::size_t i : order) {
      engine.select(i);
      last = pass(engine);
    }
    return std::vector<float>(last.begin() + 2, last.end());
  };
  const std::vector<float> first = gradients({0});
  const std::vector<float> second = gradients({1});
  const std::vector<float> both = gradients({0, 1});
  std::vector<float> sum(first.size());
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] = first[i] + second[i];
  CHECK(relative_l2(both, sum) <= 1e-6);
  CHECK(relative_l2(both, second) >= 0.1);
}

TEST_CASE("what a block keeps does not change the gradients") {
  const Setup setup;
  FluxRun run = setup.run({make_sequence(5, {.rows = 2, .cols = 3})});
  struct Outcome {
    std::vector<float> result;
    std::size_t bytes = 0;
  };
  const auto outcome = [&](KeptStages kept) {
    run.kept = std::move(kept);
    FluxEngine engine(*setup.device, *setup.slab, run);
    engine.initialise_lora(LoraInit::kKaiming, 1);
    engine.zero_gradients();
    return Outcome{pass(engine), engine.arena().bytes()};
  };
  const Outcome nothing = outcome({});
  const Outcome attention = outcome({.all = {}, .attention = {"double_blocks.0", "single_blocks.0"}});
  const Outcome all = outcome({.all = {"double_blocks.0", "single_blocks.0"}, .attention = {}});
  const Outcome mixed = outcome({.all = {"double_blocks.0"}, .attention = {"double_blocks.0", "single_blocks.0"}});
  CHECK(attention.result == nothing.result);
  CHECK(all.result == nothing.result);
  CHECK(mixed.result == nothing.result);
  CHECK(nothing.bytes < attention.bytes);
  CHECK(attention.bytes < mixed.bytes);
  CHECK(mixed.bytes < all.bytes);
}

namespace {

// Ids of every `every`-th stage, from the first on; all large ones if every is 1.
std::vector<std::string> some_stages(const Slab& slab, std::size_t every) {
  std::vector<std::string> ids;
  for (std::size_t i = 0; i < slab.blocks().size(); i += every) ids.push_back(slab.blocks()[i].id);
  return ids;
}

// Losses and gradients of three batches, as they accumulate.
std::vector<float> passes(const Setup& setup, const Residency& residency) {
  FluxRun run = setup.run({make_sequence(5, {.rows = 2, .cols = 3}), make_sequence(3, {.rows = 1, .cols = 4})});
  run.residency = residency;
  FluxEngine engine(*setup.device, *setup.slab, run);
  engine.initialise_lora(LoraInit::kKaiming, 1);
  engine.zero_gradients();
  std::vector<float> result;
  for (const std::size_t sequence : {0U, 1U, 0U}) {
    engine.select(sequence);
    const std::vector<float> values = pass(engine);
    result.insert(result.end(), values.begin(), values.end());
  }
  return result;
}

}  // namespace

TEST_CASE("weights that stream, partly or all, give the numbers of resident ones on every host path") {
  const Setup setup;
  const std::vector<float> resident = passes(setup, {});
  for (const HostPath path : {HostPath::kAuto, HostPath::kRegistered, HostPath::kRing, HostPath::kDirect}) {
    for (const std::size_t every : {1U, 2U, 3U}) {
      const Residency residency{
          .streamed = some_stages(*setup.slab, every), .slots = 2 + every, .path = path, .readers = 2};
      INFO("path " << static_cast<int>(path) << ", every " << every);
      try {
        CHECK(passes(setup, residency) == resident);
      } catch (const ConfigError& error) {  // not every file system has direct reads
        CHECK(path == HostPath::kDirect);
        CHECK(contains(error.what(), "direct reads"));
      }
    }
  }
}

TEST_CASE("weights of a slab larger than the page cache are the same, whatever part of them goes through it") {
  const Setup setup;
  const std::vector<float> resident = passes(setup, {});
  FluxRun run = setup.run({make_sequence(5, {.rows = 2, .cols = 3})});
  const std::vector<std::string> ids = some_stages(*setup.slab, 1);
  std::size_t streamed = 0;
  for (const SlabBlock& block : setup.slab->blocks()) streamed += block.bytes;
  REQUIRE(streamed < setup.slab->file_bytes());
  for (const auto& [page_cache, name] :
       {std::pair{std::size_t{0}, "direct reads into a pinned ring"},
        std::pair{streamed / 2, "direct reads into a pinned ring, 4"},  // 40 to 49 %: whole parts
        std::pair{streamed, "direct reads into a pinned ring, 100 % through the page cache"},
        std::pair{static_cast<std::size_t>(setup.slab->file_bytes()), "registered mapping"}}) {
    const Residency residency{.streamed = ids, .slots = 3, .readers = 2, .page_cache = page_cache};
    INFO("page cache " << page_cache);
    CHECK(passes(setup, residency) == resident);
    run.residency = residency;
    FluxEngine engine(*setup.device, *setup.slab, run);
    pass(engine);
    const std::string path = engine.weights().path_name();
    INFO("path " << path);
    CHECK((path.starts_with(name) || path == "pinned ring"));  // not every file system has direct reads
  }
}

TEST_CASE("a slab that is damaged, cut or changed stops a streamed run with a message") {
  const Setup setup;
  const std::string path = setup.folder.file("tiny.slab");
  FluxRun run = setup.run({make_sequence(5, {.rows = 2, .cols = 3})});
  run.residency = {.streamed = some_stages(*setup.slab, 1), .slots = 3, .path = HostPath::kRing, .readers = 2};
  const auto engine = [&] { return std::make_unique<FluxEngine>(*setup.device, *setup.slab, run); };
  const std::string whole = read_file(path);

  SECTION("damaged") {
    std::string damaged = whole;
    damaged[setup.slab->block("single_blocks.1").offset + 100] ^= 1;
    write_file(path, damaged);
    const auto late = engine();
    CHECK(contains(message_of<FormatError>([&] { pass(*late); }), "block 'single_blocks.1'"));
  }
  SECTION("changed") {
    const auto early = engine();
    pass(*early);
    std::filesystem::last_write_time(path, std::filesystem::last_write_time(path) + std::chrono::seconds(1));
    CHECK(contains(message_of<FileError>([&] { pass(*early); }), "that it was written to"));
  }
  SECTION("cut") {
    const auto early = engine();
    pass(*early);
    std::filesystem::resize_file(path, whole.size() / 2);
    CHECK(contains(message_of<FileError>([&] { pass(*early); }), "as when it was opened"));
  }
}
