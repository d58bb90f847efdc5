// squareq-sample: a prompt in, a PNG out.
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>

#include "apps/device_options.h"
#include "apps/program.h"
#include "engine/encoders.h"
#include "engine/memory_plan.h"
#include "engine/pipeline.h"
#include "engine/sampler.h"
#include "engine/saved_lora.h"
#include "kernels/base/error.h"
#include "kernels/base/random.h"

namespace squareq {
namespace {

struct Options {
  std::string model, slab, prompt, output = "output.png";
  std::string cache_dir = "cache";
  std::int64_t width = 1024, height = 1024, steps = 28;
  double guidance = 3.5;
  std::uint64_t seed = 42;
  std::vector<std::string> loras;
  std::string compare, compare_output;
  std::string device = "auto";
  DeviceOptions compute;
  int threads = 0;
};

void check_size(const char* option, std::int64_t pixels) {
  if (pixels >= 16 && pixels % 16 == 0) return;
  throw ConfigError({.where = option, .found = std::to_string(pixels), .expected = "a positive multiple of 16"});
}

PngText settings_of(const Options& o) {
  std::string loras;
  for (const std::string& lora : o.loras) loras += (loras.empty() ? "" : ", ") + lora;
  return {{"Software", "squareq " SQUAREQ_VERSION},
          {"parameters",
           fmt::format("{}\nSteps: {}, Guidance: {}, Seed: {}, Size: {}x{}, Model: {}{}", o.prompt, o.steps, o.guidance,
                       o.seed, o.width, o.height, o.model, loras.empty() ? "" : ", LoRA: " + loras)}};
}

int sample(const Options& o) {
  check_size("--width", o.width);
  check_size("--height", o.height);
  const ModelParts parts = find_model_parts(o.model);
  const std::unique_ptr<Device> device = open_device(o.device, o.threads, o.compute);
  require_part(parts.vae, "--model", "autoencoder");
  require_part(parts.clip, "--model", "CLIP text model");
  require_part(parts.t5, "--model", "T5 encoder");
  require_part(parts.tokenizers, "--model", "folder with tokenizer/ and tokenizer_2/");

  const Slab slab(
      ensure_slab({.checkpoint = parts.transformer, .slab = o.slab, .cache_dir = o.cache_dir, .threads = o.threads}));
  const FluxShape& shape = slab.flux_shape();
  const std::int64_t text_tokens = text_length(parts, shape.guidance);
  const TextStates states = [&] {
    const std::string t5 = ensure_slab(
        {.checkpoint = parts.t5, .cache_dir = o.cache_dir, .t5 = true, .codec = Codec::kFloat, .threads = o.threads});
    TextEncoder encoder(*device, parts.tokenizers, parts.clip, t5, text_tokens);
    encoder.allocate();
    return encoder.encode(o.prompt);
  }();
  const PictureSize size{.height = o.height, .width = o.width};
  Autoencoder vae(*device, parts.vae, Autoencoder::Half::kDecoder, {size});
  const std::int64_t patch = 2 * vae.shape().factor();
  const Grid grid{.rows = o.height / patch, .cols = o.width / patch};

  SavedLoras loras = load_loras(o.loras, shape);
  FluxRun run{.sequences = {make_sequence(text_tokens, grid)},
              .guests = {{.phase = {}, .work = vae.work()}},
              .lora = loras.targets};
  if (device->ops().forward_reads_prepared()) {
    FluxRun prepared = with_prepared_blocks(*device, slab, run);
    if (fits(*device, slab, prepared)) run = std::move(prepared);
  }
  FluxEngine engine(*device, slab, run);
  loras.upload(engine);

  std::vector<float> latent(static_cast<std::size_t>(grid.tokens() * shape.in_channels));
  Random({.seed = o.seed, .purpose = Purpose::kSampleNoise}).fill_normal(latent);
  const std::vector<double> sigmas = sigma_schedule(o.steps, read_schedule(parts, shape.guidance), grid.tokens());
  const FluxEngine::Sample condition{.txt = states.text, .y = states.pooled, .guidance = o.guidance};
  euler_sample(engine, {&condition, 1}, sigmas, latent,
               [&](std::size_t step) { spdlog::info("step {}/{}", step, o.steps); });
  vae.load_weights();
  const Image image = image_of(vae.decode(latent, size), o.height, o.width);
  write_png(o.output, image, settings_of(o));
  fmt::print("{}\n", o.output);
  if (!o.compare.empty()) {
    write_png(o.compare_output, hconcat(read_image(o.compare), image), settings_of(o));
    fmt::print("{}\n", o.compare_output);
  }
  return 0;
}

}  // namespace
}  // namespace squareq

int main(int argc, char** argv) {
  CLI::App app("Makes a picture from a prompt with a FLUX.1 model, with or without LoRAs.");
  squareq::Options o;
  app.add_option("-m,--model", o.model, "model folder in diffusers layout")->required();
  app.add_option("--slab", o.slab, "quantised transformer; built where it is not there yet");
  app.add_option("-p,--prompt", o.prompt, "what to draw")->required();
  app.add_option("-o,--output", o.output, "PNG file to write")->capture_default_str();
  app.add_option("-W,--width", o.width, "pixels, a multiple of 16")->capture_default_str();
  app.add_option("-H,--height", o.height, "pixels, a multiple of 16")->capture_default_str();
  app.add_option("--steps", o.steps, "Euler steps")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--guidance", o.guidance, "distilled guidance; ignored by models without")
      ->check(CLI::Range(0.0, 1000.0))
      ->capture_default_str();
  app.add_option("-s,--seed", o.seed, "of the initial noise")->capture_default_str();
  app.add_option("--lora", o.loras, "LoRA file, or FILE:STRENGTH; may be given several times");
  auto* compare = app.add_option("--compare", o.compare, "picture to put to the left of the new one");
  app.add_option("--compare-output", o.compare_output, "PNG file for the two side by side")->needs(compare);
  compare->needs(app.get_option("--compare-output"));
  app.add_option("--cache-dir", o.cache_dir, "where slabs are kept that have to be built")->capture_default_str();
  squareq::add_device_options(app, o.device, o.compute);
  app.add_option("--threads", o.threads, "0: one per hardware thread")->check(CLI::Range(0, 1024));
  return squareq::run_program(app, argc, argv, [&] { return squareq::sample(o); });
}
