// Memory of the phases of a run, with the bundled miniature: planned before, kept to, and given back.
#include <algorithm>
#include <filesystem>

#include "engine/pipeline.h"
#include "engine/run_setup.h"
#include "engine/sampler.h"
#include "io/slab_build.h"
#include "kernels/base/error.h"
#include "kernels/base/random.h"
#include "tests/catch.h"
#include "tests/engine/picture_folder.h"
#include "tests/engine/tiny_run.h"

using namespace squareq;
using namespace squareq::test;

namespace {

// Pictures of two sizes, held-out ones, and previews.
struct Mini {
  PictureFolder pictures, held_out, files;
  std::unique_ptr<Device> device = make_cpu_device(2);
  TrainConfig config = small_config();
  ModelParts parts;

  Mini() {
    pictures.add("a.png", 96, 64, "red", 1);
    pictures.add("b.png", 64, 64, "blue", 2);
    held_out.add("c.png", 64, 96, "green", 3);
    config.model = std::string(ASSETS) + "/FLUX-mini";
    config.cache_dir = files.file("cache");
    config.output_dir = files.file("out");
    config.data = pictures.data();
    config.timestamps = false;
    config.training.steps = 3;
    config.training.batch_size = 1;
    config.lora.rank = 2;
    config.validation.folder = held_out.path();
    config.validation.every = 1;
    config.validation.draws = 1;
    config.preview.prompts = {"a frog", "a cat"};
    config.preview.every = 2;
    config.preview.steps = 2;
    config.preview.size = {96, 96};
    parts = configured_parts(config);
  }

  Slab slab() const { return open_slab(config, parts); }

  MemoryPlan plan(double budget_mib) {
    config.vram_budget_gb = budget_mib / 1024.0;
    const Slab slab = this->slab();
    return RunSetup(config, parts, slab, *device).plan();
  }
  std::string refusal(double budget_mib) {
    return message_of<ConfigError>([&] { plan(budget_mib); });
  }

  // The LoRA of a whole run.
  std::string trained() {
    const Slab slab = this->slab();
    RunSetup setup(config, parts, slab, *device);
    std::optional<MemoryPlan> plan;
    if (config.vram_budget_gb > 0.0) plan = setup.plan();
    TrainingRun run(*device, slab, config, setup.encode(std::move(plan)));
    const std::atomic<bool> stop = false;
    const std::int64_t allocations = device->allocations();
    CHECK(run.run(stop) == config.training.steps);
    CHECK(device->allocations() == allocations);
    return read_file(config.output_dir + "/lora.safetensors");
  }
};

std::size_t size_of(const MemoryPlan& plan, const std::string& phase) {
  const auto found = std::ranges::find(plan.phases, phase, &Phase::name);
  REQUIRE(found != plan.phases.end());
  return found->total();
}

}  // namespace

TEST_CASE("phases: a plan has all of them, and its size is that of the largest", "[slow]") {
  Mini mini;
  const MemoryPlan plan = mini.plan(1000.0);
  std::vector<std::string> names;
  std::size_t largest = 0;
  for (const Phase& phase : plan.phases) {
    names.push_back(phase.name);
    largest = std::max(largest, phase.total());
    CHECK(contains(plan_text(plan), phase.name));
  }
  CHECK(names == std::vector<std::string>{"text encoding", "picture encoding", "training", "validation", "previews",
                                          "preview decoding", "saving"});
  CHECK(plan.total() == largest);
  CHECK(mini.device->memory().ours == 0);

  // The least is what a smaller budget is refused with, and is enough.
  const std::string message = mini.refusal(1.0);
  const double least = 1024.0 * std::stod(message.substr(message.find("at least ") + 9)) + 1.0;
  const MemoryPlan tight = mini.plan(least);
  CHECK(tight.total() <= tight.budget);
  CHECK_FALSE(tight.residency.streamed.empty());

  // For a card that is not there, with activations of its type.
  mini.config.vram_budget_gb = 0.0;
  const Slab slab = mini.slab();
  const MemoryPlan card =
      RunSetup(mini.config, mini.parts, slab, *mini.device, DType::BF16).plan(card_rates("rtx3090"));
  CHECK(card.budget == std::size_t{24} << 30U);
  CHECK(contains(plan_text(card), "a projection"));
  REQUIRE(card.phases.size() == plan.phases.size());
  for (std::size_t i = 0; i + 1 < plan.phases.size(); ++i) {
    CHECK(card.phases[i][MemoryUse::kActivations] < plan.phases[i][MemoryUse::kActivations]);
  }
}

TEST_CASE("phases: the one that does not fit is named, with what makes it smaller", "[slow]") {
  Mini mini;
  CHECK(contains(mini.refusal(1.0), "for preview decoding"));
  CHECK(contains(mini.refusal(1.0), "lower preview.size"));
  mini.config.preview.prompts.clear();
  mini.config.training.batch_size = 32;
  CHECK(contains(mini.refusal(1.0), "for training"));
  CHECK(contains(mini.refusal(1.0), "batch_size"));
  mini.config.training.batch_size = 1;
  mini.pictures.add("a.png", 256, 256, "red", 1);
  mini.config.data.resolution = {256};
  mini.config.validation.folder.clear();
  CHECK(contains(mini.refusal(1.0), "for picture encoding"));
  CHECK(contains(mini.refusal(1.0), "lower data.resolution"));

  const Slab slab = mini.slab();
  const FluxRun run = training_run(mini.config, slab.flux_shape(), {make_sequence(4, {.rows = 2, .cols = 2})});
  const RunSizes sizes = measure_run(slab, run, DType::F32);
  const EncoderSizes text{.phase = {.name = "text encoding", .smaller = "less text"}, .activations = 1U << 29U};
  const auto plan = [&](std::size_t budget) {
    return plan_memory(slab, run, sizes, {.blocks = {1.0, 1.0}, .copies = 1.0}, budget, {text});
  };
  const std::string message = message_of<ConfigError>([&] { plan((1U << 29U) - 1); });
  CHECK(contains(message, "for text encoding"));
  CHECK(contains(message, "less text"));
  CHECK(plan(1U << 29U).total() == 1U << 29U);
}

TEST_CASE("phases: texts are the same bits whether T5 stays or streams, and nothing is left behind") {
  const TempDir folder;
  const ModelParts parts = find_model_parts(std::string(ASSETS) + "/FLUX-mini");
  const std::string path = folder.file("t5.slab");
  synthesize_slab(T5Shape{.vocab = 1024, .width = 128, .layers = 12, .heads = 4, .head_dim = 32, .mlp_hidden = 256},
                  path);
  const std::unique_ptr<Device> device = make_cpu_device(2);
  TextEncoder sizes(*device, parts.tokenizers, parts.clip, path, 24);
  const EncoderSizes text{.phase = {.name = "text", .smaller = ""},
                          .weights = sizes.clip_weight_bytes(),
                          .slab = &sizes.t5_slab(),
                          .activations = sizes.activation_bytes(),
                          .scratch = sizes.scratch_bytes()};
  CHECK(device->allocations() == 0);
  const std::size_t all = plan_encoder(text, 0, std::size_t{1} << 40U).phase.total();
  const std::size_t least = plan_encoder(text, 0, 0).phase.total();
  CHECK(least < all);
  std::optional<TextStates> expected;
  std::size_t streamed_before = 0;
  for (const std::size_t budget : {all, (all + least) / 2, least}) {
    const EncoderPlan plan = plan_encoder(text, 0, budget);
    CHECK(plan.phase.total() <= budget);
    CHECK(plan.phase.total() + sizes.t5_slab().block("encoder.block.3").bytes > budget);  // nothing is left unused
    CHECK((budget == all || plan.residency.streamed.size() > streamed_before));
    streamed_before = plan.residency.streamed.size();
    {
      TextEncoder encoder(*device, parts.tokenizers, parts.clip, path, 24);
      encoder.allocate(plan.residency);
      // A device that reads host memory reads weights that stay where they are mapped.
      const std::size_t mapped = plan.phase[MemoryUse::kWeights] - text.weights;
      CHECK(device->memory().ours + mapped == plan.phase.total());
      encoder.encode("a first one fills the slots");
      const TextStates states = encoder.encode("a red apple");
      if (!expected) expected = states;
      CHECK(states.text == expected->text);
      CHECK(states.pooled == expected->pooled);
    }
    CHECK(device->memory().ours == 0);
  }
  // The embedding is larger than two slots of what a block takes, so it stays.
  const std::vector<std::string> streamed = plan_encoder(text, 0, least).residency.streamed;
  CHECK(streamed.size() == 13);
  CHECK(std::ranges::find(streamed, "embed") == streamed.end());
}

TEST_CASE("phases: what runs forward only takes less memory and gives the same bits") {
  TinyRun bench;
  const FluxShape& shape = bench.slab->flux_shape();
  const std::vector<Sequence> sequences{make_sequence(5, {.rows = 2, .cols = 3}),
                                        make_sequence(7, {.rows = 4, .cols = 4})};
  FluxRun both = training_run(small_config(), shape, sequences);
  FluxRun forward = training_run(small_config(), shape, {sequences[0]});
  forward.forward_only.push_back({.phase = {}, .sequence = sequences[1]});
  const auto prediction = [&](FluxEngine& engine) {
    engine.initialise_lora(LoraInit::kKaiming, 1);
    engine.select(1);
    const flux::State& state = engine.state();
    std::uint32_t stream = 0;
    for (const View& view : {state.img, state.txt, state.y}) {
      std::vector<float> values(static_cast<std::size_t>(view.count()));
      fill_random(values, ++stream);
      engine.device().upload(values.data(), view);
    }
    engine.forward();
    return engine.prediction();
  };
  FluxEngine with(*bench.device, *bench.slab, both);
  FluxEngine without(*bench.device, *bench.slab, forward);
  CHECK(prediction(without) == prediction(with));
  CHECK(without.arena().bytes() < with.arena().bytes());
}

TEST_CASE("phases: a run keeps to its plan, allocates nothing on the way, and learns the same", "[slow]") {
  Mini mini;
  const std::string expected = mini.trained();
  CHECK(mini.device->memory().ours == 0);
  const MemoryPlan free = mini.plan(1000.0);
  const std::string message = mini.refusal(1.0);
  mini.config.vram_budget_gb = std::stod(message.substr(message.find("at least ") + 9)) + 0.001;
  mini.config.resume = "off";
  std::filesystem::remove_all(mini.config.cache_dir);
  CHECK((mini.trained() == expected));
  CHECK(mini.device->memory().ours == 0);

  const Slab slab = mini.slab();
  RunSetup setup(mini.config, mini.parts, slab, *mini.device);
  const MemoryPlan plan = setup.plan();
  CHECK(plan.total() < free.total());
  TrainingRun run(*mini.device, slab, mini.config, setup.encode(plan));
  std::size_t mapped = 0;  // weights that stay
  for (const SlabBlock& block : slab.blocks()) {
    if (std::ranges::find(plan.residency.streamed, block.id) == plan.residency.streamed.end()) mapped += block.bytes;
  }
  CHECK(mini.device->memory().ours + mapped == plan.total());
  CHECK(size_of(plan, "preview decoding") == plan.total());
}

TEST_CASE("phases: a preview is the picture that an autoencoder of its own decodes", "[slow]") {
  Mini mini;
  mini.trained();
  const std::string drawn = mini.config.output_dir + "/previews/lora-000000-1.png";

  const Slab slab = mini.slab();
  const FluxShape& shape = slab.flux_shape();
  const std::int64_t text_tokens = text_length(mini.parts, shape.guidance);
  const TextStates text = CachedTexts(mini.config, mini.parts, text_tokens).load("a cat");
  const Grid grid{.rows = 6, .cols = 6};
  FluxEngine engine(*mini.device, slab, {.sequences = {make_sequence(text_tokens, grid)}});
  std::vector<float> latent(static_cast<std::size_t>(grid.tokens() * shape.in_channels));
  Random({.seed = mini.config.preview.seed + 1, .purpose = Purpose::kSampleNoise}).fill_normal(latent);
  const FluxEngine::Sample condition{.txt = text.text, .y = text.pooled, .guidance = mini.config.preview.guidance};
  euler_sample(engine, {&condition, 1}, sigma_schedule(2, read_schedule(mini.parts, shape.guidance), grid.tokens()),
               latent, [](std::size_t) {});
  const PictureSize size{.height = 96, .width = 96};
  Autoencoder decoder(*mini.device, mini.parts.vae, Autoencoder::Half::kDecoder, {size});
  decoder.allocate();
  CHECK(image_of(decoder.decode(latent, size), 96, 96).rgb == read_image(drawn).rgb);
}
