// squareq-lora: converts, merges and resizes LoRA files, shows what is in one, and makes random ones.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <optional>
#include <regex>
#include <string>
#include <vector>

#include "apps/lora/inspect.h"
#include "apps/program.h"
#include "engine/lora_tools.h"
#include "engine/saved_lora.h"
#include "io/checkpoint.h"
#include "io/lora_layout.h"
#include "io/slab.h"
#include "io/slab_build.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

constexpr std::int64_t kLargestRank = 4096;

// What several commands take.
struct Options {
  std::string shape = "flux-dev";
  std::vector<std::string> inputs;
  std::string output;
  std::optional<LoraNaming> naming;
  std::optional<DType> dtype;
  std::int64_t rank = 0;
};

// A shape by name, or that of a slab or checkpoint.
FluxShape flux_shape_of(const std::string& text) {
  if (!std::filesystem::exists(text)) {
    const SlabShape shape = named_shape(text);
    if (const auto* flux = std::get_if<FluxShape>(&shape)) return *flux;
    throw ConfigError({"--shape", "'" + text + "'", "the shape of a FLUX transformer", ""});
  }
  if (text.ends_with(".slab")) return Slab(text).flux_shape();
  return flux_shape(Checkpoint::open(text, Model::kTransformer));
}

void write(const Options& o, const std::vector<LoraFile>& sources, const std::vector<LoraAdapter>& adapters,
           const FluxShape& shape, LoraNaming naming, DType dtype) {
  write_lora(o.output, adapters, shape, naming, dtype, derived_metadata(sources, adapters, shape, o.output));
  fmt::print("{}: {} adapters of rank {}, {}\n", o.output, adapters.size(), largest_rank(adapters), name_of(dtype));
}

// Files of other programs' namings become kohya's where nothing else is said.
LoraNaming output_naming(const Options& o, const LoraFile& first) {
  return o.naming.value_or(first.naming.value_or(LoraNaming::kKohya));
}

// Folding alpha / rank into BF16 numbers rounds them once more, which people should know.
void tell_of_folding(const LoraFile& file, LoraNaming naming, DType dtype) {
  if (naming != LoraNaming::kPeft || dtype == DType::F32 || folds_exactly(file.adapters)) return;
  spdlog::warn(
      "alpha / rank is not a power of two, so putting it into the matrices rounds them once: --dtype f32 "
      "keeps them");
}

int run_convert(const Options& o) {
  const FluxShape shape = flux_shape_of(o.shape);
  const LoraFile file = read_lora_warning(o.inputs.at(0), shape);
  const LoraNaming naming = output_naming(o, file);
  const DType dtype = o.dtype.value_or(file.dtype);
  tell_of_folding(file, naming, dtype);
  const std::vector<LoraAdapter> adapters = arrange_adapters(file.adapters, shape, naming);
  const std::int64_t before = largest_rank(file.adapters);
  const std::int64_t after = largest_rank(adapters);
  if (after > before) fmt::print("the rank grows from {} to {}: parts with own matrices become one\n", before, after);
  if (after < before) fmt::print("the rank falls from {} to {}: blocks of zeros are left out\n", before, after);
  write(o, {file}, adapters, shape, naming, dtype);
  return 0;
}

// Brings the adapters to the rank asked for, and says what that costs.
void resize(std::vector<LoraAdapter>& adapters, std::int64_t rank) {
  const std::vector<double> kept = resize_adapters(adapters, rank);
  const auto worst = std::min_element(kept.begin(), kept.end());
  const double mean = std::accumulate(kept.begin(), kept.end(), 0.0) / static_cast<double>(kept.size());
  fmt::print("rank {} keeps {:.2f} % of the norm of a weight change on average, {:.2f} % in the worst case ({})\n",
             rank, 100.0 * mean, 100.0 * *worst, adapters[static_cast<std::size_t>(worst - kept.begin())].linear);
}

int run_resize(const Options& o) {
  const FluxShape shape = flux_shape_of(o.shape);
  const LoraFile file = read_lora_warning(o.inputs.at(0), shape);
  const LoraNaming naming = output_naming(o, file);
  std::vector<LoraAdapter> adapters = arrange_adapters(file.adapters, shape, naming);
  resize(adapters, o.rank);
  write(o, {file}, adapters, shape, naming, o.dtype.value_or(file.dtype));
  return 0;
}

int run_merge(const Options& o) {
  const FluxShape shape = flux_shape_of(o.shape);
  std::vector<LoraFile> files;
  std::vector<LoraAdapter> all;
  std::int64_t rank = 0;
  for (const std::string& text : o.inputs) {
    const LoraEntry entry = parse_lora_entry(text);
    files.push_back(read_lora_warning(entry.path, shape));
    std::vector<LoraAdapter> adapters = files.back().adapters;
    rank = std::max(rank, largest_rank(adapters));
    scale_adapters(adapters, entry.strength);
    std::move(adapters.begin(), adapters.end(), std::back_inserter(all));
  }
  const LoraNaming naming = output_naming(o, files[0]);
  std::vector<LoraAdapter> merged = arrange_adapters(std::move(all), shape, naming);
  if (o.rank > 0) {
    resize(merged, o.rank);
  } else if (largest_rank(merged) > rank) {
    fmt::print("the rank grows from {} to {}, so that nothing is lost: --rank sets a smaller one\n", rank,
               largest_rank(merged));
  }
  write(o, files, merged, shape, naming, o.dtype.value_or(files[0].dtype));
  return 0;
}

struct RandomOptions {
  std::vector<std::string> targets{"all-linear"};
  double alpha = 0.0;
  std::uint64_t seed = 0;
};

void set_targets(LoraConfig& config, const std::vector<std::string>& targets) {
  const std::string& first = targets.at(0);
  if (targets.size() == 1 && (first == "attention" || first == "attention+mlp" || first == "all-linear")) {
    config.preset = first;
    return;
  }
  for (const std::string& pattern : targets) {
    try {
      const std::regex compiled(pattern);
    } catch (const std::regex_error& error) {
      throw ConfigError({"--targets", "'" + pattern + "'", "a preset or a regular expression", error.what()});
    }
  }
  config.preset.clear();
  config.patterns = targets;
}

int run_synth(const Options& o, const RandomOptions& random) {
  const FluxShape shape = flux_shape_of(o.shape);
  const LoraNaming naming = o.naming.value_or(LoraNaming::kKohya);
  LoraConfig config{.rank = o.rank,
                    .alpha = random.alpha > 0.0 ? random.alpha : static_cast<double>(o.rank),
                    .split_qkv = naming == LoraNaming::kPeft};
  set_targets(config, random.targets);
  const std::vector<LoraAdapter> adapters =
      arrange_adapters(random_adapters(config, shape, random.seed), shape, naming);
  write(o, {}, adapters, shape, naming, o.dtype.value_or(DType::BF16));
  return 0;
}

void add_output(CLI::App& command, Options& o, const std::string& default_naming, const std::string& default_dtype) {
  const std::map<std::string, LoraNaming> namings{{"kohya", LoraNaming::kKohya}, {"peft", LoraNaming::kPeft}};
  const std::map<std::string, DType> dtypes{{"bf16", DType::BF16}, {"f16", DType::F16}, {"f32", DType::F32}};
  command.add_option("-o,--output", o.output, "file to write")->required();
  command.add_option("--naming", o.naming, "kohya, or peft (that of diffusers); by default " + default_naming)
      ->transform(CLI::CheckedTransformer(namings, CLI::ignore_case));
  command.add_option("--dtype", o.dtype, "bf16, f16 or f32; by default " + default_dtype)
      ->transform(CLI::CheckedTransformer(dtypes, CLI::ignore_case));
}

}  // namespace
}  // namespace squareq

int main(int argc, char** argv) {
  using namespace squareq;
  CLI::App app("Converts, merges and resizes LoRA files for FLUX.1, shows what is in one, and makes random ones.");
  app.require_subcommand(1);
  Options o;
  const auto command = [&](const char* name, const char* what) {
    CLI::App* added = app.add_subcommand(name, what);
    added->add_option("--shape", o.shape, "size of the model: flux-dev, flux-schnell, mini, a slab or a checkpoint")
        ->capture_default_str();
    return added;
  };
  const auto rank_range = CLI::Range(std::int64_t{1}, kLargestRank);

  CLI::App* convert = command("convert", "write a LoRA in another naming or type, exactly");
  convert->add_option("FILE", o.inputs)->required()->expected(1);
  add_output(*convert, o, "as it is", "as it is");

  bool modules = false;
  bool json = false;
  CLI::App* inspect = command("inspect", "ranks, targets, sizes of the weight changes, and metadata of a LoRA");
  inspect->add_option("FILE", o.inputs)->required()->expected(1);
  inspect->add_flag("--modules", modules, "also a line for every adapter");
  inspect->add_flag("--json", json, "everything as JSON");

  CLI::App* merge = command("merge", "write one LoRA that does what several do");
  merge->add_option("FILE[:STRENGTH]", o.inputs)->required();
  add_output(*merge, o, "that of the first file", "that of the first file");
  merge->add_option("--rank", o.rank, "rank of the result; by default as large as an exact one needs")
      ->check(rank_range);

  CLI::App* resize = command("resize", "write a LoRA of another rank that comes nearest");
  resize->add_option("FILE", o.inputs)->required()->expected(1);
  resize->add_option("--rank", o.rank)->required()->check(rank_range);
  add_output(*resize, o, "as it is", "as it is");

  RandomOptions random;
  CLI::App* synth = command("synth", "make a LoRA of random numbers");
  synth->add_option("--rank", o.rank)->required()->check(rank_range);
  synth->add_option("--alpha", random.alpha, "by default the rank")->check(CLI::Range(1e-6, 65536.0));
  synth
      ->add_option("--targets", random.targets,
                   "attention, attention+mlp or all-linear, or regular expressions for whole names of linears")
      ->capture_default_str();
  synth->add_option("--seed", random.seed)->capture_default_str();
  add_output(*synth, o, "kohya", "bf16");

  return run_program(app, argc, argv, [&] {
    if (*convert) return run_convert(o);
    if (*merge) return run_merge(o);
    if (*resize) return run_resize(o);
    if (*synth) return run_synth(o, random);
    inspect_lora(o.inputs.at(0), flux_shape_of(o.shape), modules, json);
    return 0;
  });
}
