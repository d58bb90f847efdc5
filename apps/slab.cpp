// squareq-slab: makes slabs, looks into them and checks them.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "apps/program.h"
#include "io/checkpoint.h"
#include "io/file.h"
#include "io/slab_build.h"
#include "io/slab_layout.h"
#include "io/slab_shape.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double gigabytes(std::uint64_t bytes) { return static_cast<double>(bytes) * 1e-9; }

std::string size_text(std::uint64_t bytes) {
  const double gb = gigabytes(bytes);
  return gb < 1.0 ? fmt::format("{:.2f} MB", gb * 1e3) : fmt::format("{:.2f} GB", gb);
}

// One line on the console that is rewritten, or a line every ten per cent in a log file; a summary at the end.
class Progress {
 public:
  void operator()(const SlabProgress& p) {
    const double seconds = seconds_since(start_);
    const double rate = gigabytes(p.done - p.resumed) / std::max(seconds, 1e-3);
    const double left = rate > 0.0 ? gigabytes(p.total - p.done) / rate : 0.0;
    if (p.resumed > 0 && !resumed_) fmt::print(stderr, "going on after {}\n", size_text(p.resumed));
    resumed_ = p.resumed > 0;
    last_ = p;
    const double percent = 100.0 * static_cast<double>(p.done) / static_cast<double>(p.total);
    const std::string line = fmt::format("{:5.1f} %  {} of {}  {:.2f} GB/s  {:.0f} s left  {}", percent,
                                         size_text(p.done), size_text(p.total), rate, left, p.block);
    if (terminal_) {
      fmt::print(stderr, "\r{}\033[K", line);
    } else if (percent >= next_percent_) {
      fmt::print(stderr, "{}\n", line);
      next_percent_ = percent + 10.0;
    }
  }

  void finish(const std::string& path) const {
    const double seconds = seconds_since(start_);
    const std::uint64_t written = last_.done - last_.resumed;
    fmt::print(stderr, "{}{}: {} in {:.1f} s, {:.2f} GB/s\n", terminal_ ? "\r\033[K" : "", path, size_text(written),
               seconds, gigabytes(written) / std::max(seconds, 1e-3));
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  bool terminal_ = isatty(STDERR_FILENO) != 0;
  bool resumed_ = false;
  double next_percent_ = 0.0;
  SlabProgress last_;
};

struct BuildOptions {
  std::string checkpoint, output, config;
  std::string kind = "auto";
  std::string codec = "int8";
  int threads = 0;
};

int run_build(const BuildOptions& o) {
  if (o.kind == "auto") {
    const bool flux = Checkpoint::holds(o.checkpoint, Model::kTransformer);
    if (flux && Checkpoint::holds(o.checkpoint, Model::kT5)) {
      throw ConfigError(
          {o.checkpoint, "a transformer and a T5 encoder", "one of them", "say --kind flux or --kind t5"});
    }
    BuildOptions decided = o;
    decided.kind = flux ? "flux" : "t5";
    return run_build(decided);
  }
  const Checkpoint checkpoint = Checkpoint::open(o.checkpoint, o.kind == "flux" ? Model::kTransformer : Model::kT5);
  std::optional<nlohmann::json> config;
  if (!o.config.empty()) {
    config = nlohmann::json::parse(read_text(o.config), nullptr, false);
    if (!config->is_object()) throw FormatError({o.config, "something else", "a JSON object"});
  }
  const SlabShape shape =
      o.kind == "flux" ? SlabShape(flux_shape(checkpoint, config)) : SlabShape(t5_shape(checkpoint));
  Progress progress;
  build_slab(checkpoint, shape, o.output,
             {.codec = codec_from_name(o.codec).value(), .threads = o.threads, .progress = std::ref(progress)});
  progress.finish(o.output);
  return 0;
}

nlohmann::ordered_json to_json(const Slab& slab) {
  nlohmann::ordered_json blocks = nlohmann::ordered_json::array();
  for (const SlabBlock& b : slab.blocks()) {
    blocks.push_back(
        {{"id", b.id}, {"offset", b.offset}, {"bytes", b.bytes}, {"xxh3_128", b.checksum}, {"tensors", b.tensors}});
  }
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const SlabLayer& l : slab.layers()) {
    layers.push_back({{"name", l.name},
                      {"block", l.block},
                      {"codec", name_of(l.codec)},
                      {"out", l.out},
                      {"in", l.in},
                      {"relative_l2", l.relative_l2},
                      {"cosine", l.cosine},
                      {"max_abs", l.max_abs}});
  }
  return {{"path", slab.path()},
          {"version", kSlabVersion},
          {"kind", kind_of(slab.shape())},
          {"shape", shape_to_json(slab.shape())},
          {"bytes", slab.file_bytes()},
          {"source_xxh3_128", slab.metadata().at("source_xxh3_128")},
          {"blocks", blocks},
          {"layers", layers}};
}

void print_layers(const Slab& slab) {
  fmt::print("\n{:<60} {:<6} {:>14} {:>12} {:>12} {:>12}\n", "layer", "codec", "[out, in]", "relative L2", "1 - cosine",
             "max abs");
  for (const SlabLayer& l : slab.layers()) {
    fmt::print("{:<60} {:<6} {:>14} {:>12.3e} {:>12.3e} {:>12.3e}\n", l.name, name_of(l.codec),
               fmt::format("[{}, {}]", l.out, l.in), l.relative_l2, 1.0 - l.cosine, l.max_abs);
  }
}

int run_inspect(const std::string& path, bool layers, bool json) {
  const Slab slab(path);
  if (json) {
    fmt::print("{}\n", to_json(slab).dump(2));
    return 0;
  }
  fmt::print("{}: slab version {}, {}, {}, data from byte {}\nshape {}\nsource {}\n\n", path, kSlabVersion,
             kind_of(slab.shape()), size_text(slab.file_bytes()), slab.data_offset(),
             shape_to_json(slab.shape()).dump(), slab.metadata().at("source_xxh3_128"));
  fmt::print("{:<32} {:>14} {:>14} {:>8} {:>8}  {}\n", "block", "offset", "bytes", "int8", "float",
             "worst relative L2");
  for (const SlabBlock& b : slab.blocks()) {
    int quantised = 0;
    int floats = 0;
    double worst = 0.0;
    for (const SlabLayer& l : slab.layers()) {
      if (l.block != b.id) continue;
      ++(l.codec == Codec::kInt8Rows ? quantised : floats);
      worst = std::max(worst, l.relative_l2);
    }
    fmt::print("{:<32} {:>14} {:>14} {:>8} {:>8}  {:.3e}\n", b.id, b.offset, b.bytes, quantised, floats, worst);
  }
  if (layers) print_layers(slab);
  return 0;
}

int run_verify(const std::string& path) {
  const auto start = std::chrono::steady_clock::now();
  const Slab slab(path);
  slab.verify_all();
  const double seconds = seconds_since(start);
  fmt::print("{}: intact, {} blocks, {} in {:.1f} s, {:.2f} GB/s\n", path, slab.blocks().size(),
             size_text(slab.file_bytes()), seconds, gigabytes(slab.file_bytes()) / std::max(seconds, 1e-3));
  return 0;
}

struct SynthCommand {
  std::string shape, output;
  bool checkpoint = false;
  std::int64_t depth = -1;
  std::int64_t single = -1;
  SynthOptions options;
};

int run_synth(SynthCommand o) {
  SlabShape shape = named_shape(o.shape);
  if (auto* flux = std::get_if<FluxShape>(&shape)) {
    if (o.depth >= 0) flux->double_blocks = o.depth;
    if (o.single >= 0) flux->single_blocks = o.single;
  } else {
    if (o.single >= 0) throw ConfigError({"--single", "T5", "a FLUX shape", "T5 has blocks of one kind: --depth"});
    if (o.depth >= 0) std::get<T5Shape>(shape).layers = o.depth;
  }
  Progress progress;
  o.options.progress = std::ref(progress);
  if (o.checkpoint) {
    synthesize_checkpoint(shape, o.output, o.options);
  } else {
    synthesize_slab(shape, o.output, o.options);
  }
  progress.finish(o.output);
  return 0;
}

}  // namespace
}  // namespace squareq

int main(int argc, char** argv) {
  using namespace squareq;
  CLI::App app(
      "Makes slabs (the weights of one network in one file, quantised and laid out for streaming), shows and "
      "checks them.");
  app.require_subcommand(1);

  BuildOptions build;
  auto* build_command =
      app.add_subcommand("build", "make the slab of a checkpoint; goes on where an earlier run stopped");
  build_command->add_option("CHECKPOINT", build.checkpoint, "file, index or folder; also a whole diffusers model")
      ->required();
  build_command->add_option("-o,--output", build.output, "slab to write")->required();
  build_command->add_option("--kind", build.kind, "which part of the checkpoint")
      ->check(CLI::IsMember({"auto", "flux", "t5"}))
      ->capture_default_str();
  build_command->add_option("--codec", build.codec, "how linear layers inside the blocks are stored")
      ->check(CLI::IsMember({"int8", "float"}))
      ->capture_default_str();
  build_command->add_option("--config", build.config, "JSON file with shape values the checkpoint lacks (RoPE axes)");

  std::string path;
  bool layers = false;
  bool json = false;
  auto* inspect_command = app.add_subcommand("inspect", "blocks, bytes, codecs and errors of a slab");
  inspect_command->add_option("FILE", path)->required();
  inspect_command->add_flag("--layers", layers, "also a line for every layer: codec, shape, errors");
  inspect_command->add_flag("--json", json, "everything as JSON");

  auto* verify_command = app.add_subcommand("verify", "read a slab and compare every checksum");
  verify_command->add_option("FILE", path)->required();

  SynthCommand synth;
  auto* synth_command = app.add_subcommand("synth", "make a slab or checkpoint of random weights, for benchmarks");
  synth_command->add_option("--shape", synth.shape)
      ->check(CLI::IsMember({"flux-dev", "flux-schnell", "t5-xxl", "mini"}))
      ->required();
  synth_command->add_option("-o,--output", synth.output, "slab, or folder of the checkpoint")->required();
  synth_command->add_flag("--checkpoint", synth.checkpoint, "write a BF16 checkpoint in diffusers layout instead");
  synth_command->add_option("--depth", synth.depth, "number of (double) blocks, instead of the shape's")
      ->check(CLI::Range(0, 4096));
  synth_command->add_option("--single", synth.single, "number of single blocks, instead of the shape's")
      ->check(CLI::Range(0, 4096));
  synth_command->add_option("--seed", synth.options.seed)->capture_default_str();
  for (auto [command, threads] : {std::pair{build_command, &build.threads}, {synth_command, &synth.options.threads}}) {
    command->add_option("--threads", *threads, "0: one per hardware thread")->check(CLI::Range(0, 1024));
  }

  return run_program(app, argc, argv, [&] {
    if (*build_command) return run_build(build);
    if (*inspect_command) return run_inspect(path, layers, json);
    if (*verify_command) return run_verify(path);
    return run_synth(synth);
  });
}
