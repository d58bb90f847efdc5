#include "engine/config_table.h"

#include <regex>
#include <utility>

#include "engine/config_rows.h"

namespace squareq {
namespace {

ConfigField axes_field() {
  ConfigField field;
  field.path = "axes_dims_rope";
  field.expected = "three even integers from 2 to 1024";
  field.schema = {{"type", "array"},
                  {"items", {{"type", "integer"}, {"minimum", 2}, {"maximum", 1024}, {"multipleOf", 2}}},
                  {"minItems", 3},
                  {"maxItems", 3}};
  field.doc =
      "Features of each head that encode the sequence index, the row and the column; together the head size. Files in "
      "BFL layout do not tell.";
  field.absent = "read from the model; [16, 56, 56] for a head size of 128";
  field.set = [](TrainConfig& c, const Json& value) {
    if (!value.is_array() || value.size() != 3) return false;
    std::array<std::int64_t, 3> axes{};
    for (std::size_t i = 0; i < 3; ++i) {
      if (!read_integer(value[i], 2, 1024, axes[i]) || axes[i] % 2 != 0) return false;
    }
    c.axes_dims_rope = axes;
    return true;
  };
  field.get = [](const TrainConfig& c) { return c.axes_dims_rope ? Json(*c.axes_dims_rope) : Json(); };
  return field;
}

constexpr Range kAlpha{.low = 0.0, .high = 65536.0, .open_low = true};

ConfigField alpha_field() {
  ConfigField field;
  field.path = "lora.alpha";
  field.schema = kAlpha.schema();
  field.expected = "a number " + kAlpha.text();
  field.doc = "The adapters' output is scaled by alpha / rank.";
  field.absent = "`lora.rank`";
  field.set = [](TrainConfig& c, const Json& value) { return read_number(value, kAlpha, c.lora.alpha); };
  field.get = [](const TrainConfig& c) { return c.lora.alpha > 0.0 ? Json(c.lora.alpha) : Json(); };
  return field;
}

bool is_expression(const std::string& pattern) {
  if (pattern.empty() || pattern.size() > 256) return false;
  try {
    const std::regex compiled(pattern);
    return true;
  } catch (const std::regex_error&) {
    return false;
  }
}

ConfigField targets_field() {
  ConfigField field;
  field.path = "lora.targets";
  field.schema = {{"oneOf",
                   {{{"enum", {"attention", "attention+mlp", "all-linear"}}},
                    {{"type", "array"},
                     {"items", {{"type", "string"}, {"minLength", 1}, {"maxLength", 256}}},
                     {"minItems", 1},
                     {"maxItems", 64}}}}};
  field.expected =
      "\"attention\" or \"attention+mlp\" or \"all-linear\" or a list of 1 to 64 regular expressions of at most 256 "
      "characters";
  field.doc =
      "The linears that get an adapter. `attention`: the qkv and output projections of double blocks, and the q, k and "
      "v rows of single blocks. `attention+mlp`: every linear in the blocks except modulation. `all-linear`: "
      "modulation "
      "too. Expressions (ECMAScript) are each matched against whole names such as "
      "`double_blocks.0.img_attn.qkv` or `single_blocks.3.linear1`.";
  field.set = [](TrainConfig& c, const Json& value) {
    if (value.is_string()) {
      const auto& preset = value.get_ref<const std::string&>();
      if (preset != "attention" && preset != "attention+mlp" && preset != "all-linear") return false;
      c.lora.preset = preset;
      c.lora.patterns.clear();
      return true;
    }
    if (!value.is_array() || value.empty() || value.size() > 64) return false;
    std::vector<std::string> patterns;
    for (const Json& entry : value) {
      if (!entry.is_string() || !is_expression(entry.get_ref<const std::string&>())) return false;
      patterns.push_back(entry.get<std::string>());
    }
    c.lora.preset.clear();
    c.lora.patterns = std::move(patterns);
    return true;
  };
  field.get = [](const TrainConfig& c) { return c.lora.preset.empty() ? Json(c.lora.patterns) : Json(c.lora.preset); };
  return field;
}

bool read_override(const Json& value, LoraConfig::Override& to) {
  if (!value.is_object()) return false;
  for (const auto& [name, inner] : value.items()) {
    if (name == "pattern") {
      if (!inner.is_string() || !is_expression(inner.get_ref<const std::string&>())) return false;
      to.pattern = inner.get<std::string>();
    } else if (name == "rank") {
      if (!read_integer(inner, 1, 4096, to.rank)) return false;
    } else if (name != "alpha" || !read_number(inner, kAlpha, to.alpha)) {
      return false;
    }
  }
  return !to.pattern.empty() && to.rank > 0;
}

ConfigField overrides_field() {
  ConfigField field;
  field.path = "lora.overrides";
  field.expected =
      "a list of at most 64 sections { } with `pattern`, a regular expression, `rank`, from 1 to 4096, and optionally "
      "`alpha`";
  field.doc =
      "Other ranks for some of the targets: `[{\"pattern\": \"single_blocks.*\", \"rank\": 8}]`. The first entry whose "
      "expression matches a whole name counts; without `alpha` it keeps the ratio of `lora.alpha` and `lora.rank`.";
  field.schema = {{"type", "array"},
                  {"items",
                   {{"type", "object"},
                    {"properties",
                     {{"pattern", {{"type", "string"}, {"minLength", 1}, {"maxLength", 256}}},
                      {"rank", {{"type", "integer"}, {"minimum", 1}, {"maximum", 4096}}},
                      {"alpha", kAlpha.schema()}}},
                    {"required", {"pattern", "rank"}},
                    {"additionalProperties", false}}},
                  {"maxItems", 64}};
  field.set = [](TrainConfig& c, const Json& value) {
    if (!value.is_array() || value.size() > 64) return false;
    std::vector<LoraConfig::Override> overrides;
    for (const Json& entry : value) {
      if (!read_override(entry, overrides.emplace_back())) return false;
    }
    c.lora.overrides = std::move(overrides);
    return true;
  };
  field.get = [](const TrainConfig& c) {
    Json list = Json::array();
    for (const LoraConfig::Override& entry : c.lora.overrides) {
      list.push_back({{"pattern", entry.pattern}, {"rank", entry.rank}});
      if (entry.alpha > 0.0) list.back()["alpha"] = entry.alpha;
    }
    return list;
  };
  return field;
}

ConfigField resume_field() {
  ConfigField field =
      words(FIELD(resume), Doc{"`auto`: the run goes on from its newest state in `output_dir`, if there "
                               "is one. `off`: it starts anew. A path: it goes on from that state."});
  field.expected = "\"auto\" or \"off\" or a path";
  field.file_path = [](TrainConfig& c) { return c.resume == "auto" || c.resume == "off" ? nullptr : &c.resume; };
  return field;
}

ConfigField name_field() {
  ConfigField field;
  field.path = "name";
  field.expected = "a file name without folder, of at most 200 bytes";
  field.schema = {{"type", "string"}, {"pattern", "^[^./\\\\][^/\\\\]*$"}, {"maxLength", 200}};
  field.doc = "Stem of the files written: `NAME.safetensors` at the end, `NAME-000500.safetensors` on the way.";
  field.set = [](TrainConfig& c, const Json& value) {
    std::string text;
    if (!read_text_value(value, text) || text.size() > 200 || text[0] == '.') return false;
    if (text.find_first_of("/\\") != std::string::npos) return false;
    c.name = std::move(text);
    return true;
  };
  field.get = [](const TrainConfig& c) { return Json(c.name); };
  return field;
}

void add_file_fields(std::vector<ConfigField>& t) {
  const auto part = [](std::string text, std::string absent) { return Doc{std::move(text), false, std::move(absent)}; };
  t.push_back(path_to(FIELD(model), "a path",
                      part("A FLUX.1 model: a folder in diffusers layout, or a transformer in one file (then the four "
                           "parts below are needed).",
                           "every part is named below")));
  t.push_back(path_to(FIELD(transformer), "a path",
                      part("Transformer in place of the model's own: a folder or a file.", "`model`")));
  t.push_back(
      path_to(FIELD(slab), "a path",
              part("Slab of the transformer. It is built there if there is no such file.", "a name in `cache_dir`")));
  t.push_back(
      path_to(FIELD(vae), "a path", part("Autoencoder: a folder or a file such as `ae.safetensors`.", "`model`")));
  t.push_back(path_to(FIELD(clip), "a path",
                      part("CLIP-L text encoder: a folder or a file such as `clip_l.safetensors`.", "`model`")));
  t.push_back(path_to(FIELD(t5), "a path",
                      part("T5 text encoder: a folder or a file such as `t5xxl_fp16.safetensors`.", "`model`")));
  t.push_back(path_to(FIELD(tokenizers), "a path",
                      part("Folder with the subfolders `tokenizer` (CLIP) and `tokenizer_2` (T5).", "`model`")));
  t.push_back(choice(FIELD(quantize),
                     std::vector<std::pair<std::string, TrainConfig::Quantize>>{{"int8", TrainConfig::Quantize::kInt8},
                                                                                {"none", TrainConfig::Quantize::kNone}},
                     "How the frozen transformer is kept: INT8 with a scale per output row, or as it is in its file."));
  t.push_back(axes_field());
  t.push_back(path_to(FIELD(output_dir), "a path", part("Folder for everything the run writes.", "")));
  t.push_back(name_field());
  t.push_back(path_to(
      FIELD(cache_dir), "a path",
      part("Folder for the slab, latents and text states. May be shared by runs and deleted at any time.", "")));
}

void add_run_fields(std::vector<ConfigField>& t) {
  t.push_back(integer(FIELD(save_every), 0, kMany,
                      "Also save the LoRA and the state of the run after every so many steps; 0: only at the end."));
  t.push_back(integer(FIELD(keep_states), 1, 1000, "Newest states that are kept, each in `NAME-000500.state`."));
  t.push_back(resume_field());
  t.push_back(
      boolean(FIELD(timestamps),
              "Files tell when they were made and how long that took. False: the same run gives the same bytes."));
  t.push_back(choice(
      FIELD(save_dtype),
      std::vector<std::pair<std::string, DType>>{{"bf16", DType::BF16}, {"f16", DType::F16}, {"f32", DType::F32}},
      "Type of the numbers in the LoRA file. Training itself keeps adapters in F32."));
  t.push_back(choice(
      FIELD(save_format),
      std::vector<std::pair<std::string, LoraNaming>>{{"kohya", LoraNaming::kKohya}, {"peft", LoraNaming::kPeft}},
      "Naming in the LoRA file. `kohya`: read by every program. `peft`: that of diffusers, with q, k and "
      "v apart and alpha / rank in the matrices."));
  t.push_back(integer(FIELD(log_every), 1, kMany, "Steps between lines on the console and in `metrics.jsonl`."));
  t.push_back(choice(FIELD(device),
                     std::vector<std::pair<std::string, TrainConfig::Device>>{{"auto", TrainConfig::Device::kAuto},
                                                                              {"cpu", TrainConfig::Device::kCpu},
                                                                              {"cuda", TrainConfig::Device::kCuda}},
                     "Where to compute. `auto` takes a GPU if the build and the machine have one."));
  using Kernels = DeviceOptions::Kernels;
  t.push_back(choice(
      "attention", [](auto& c) -> auto& { return c.compute.attention; },
      std::vector<std::pair<std::string, Kernels>>{
          {"auto", Kernels::kAuto}, {"portable", Kernels::kPortable}, {"cudnn", Kernels::kCudnn}},
      "Attention kernels on a GPU: our own, or cuDNN's. `auto` takes cuDNN's where they are faster and cuDNN is "
      "installed."));
  t.push_back(boolean(
      "deterministic", [](auto& c) -> auto& { return c.compute.deterministic; },
      "On a GPU: the same seed gives the same bits. False is faster with cuDNN's attention, whose backward pass then "
      "adds numbers up in any order; all else always repeats."));
  using Precision = DeviceOptions::Precision;
  t.push_back(choice(
      "precision", [](auto& c) -> auto& { return c.compute.precision; },
      std::vector<std::pair<std::string, Precision>>{{"w8a16", Precision::kW8A16}, {"w8a8", Precision::kW8A8}},
      "Products with INT8 weights on a GPU. `w8a16`: in bfloat16. `w8a8`: activations are rounded to INT8 too, token "
      "by "
      "token, which is faster and less exact. The CPU computes in float32 whatever stands here."));
  t.push_back(
      number(FIELD(vram_budget_gb), {.low = 0.0, .high = 4096.0},
             "Memory of the device that the run may use, in GiB (2^30 bytes), with what the driver takes for it. "
             "Weights that do not fit stream from the slab, and blocks compute their activations again. 0: as "
             "much as is free."));
  t.push_back(choice(FIELD(host_path),
                     std::vector<std::pair<std::string, HostPath>>{{"auto", HostPath::kAuto},
                                                                   {"registered", HostPath::kRegistered},
                                                                   {"ring", HostPath::kRing},
                                                                   {"direct", HostPath::kDirect}},
                     "How weights that stream are read. `registered`: by the device from the mapped slab. `ring`: by "
                     "threads into pinned memory. `direct`: the same past the page cache. `auto`: the first that "
                     "works; `direct` is for a slab larger than the machine's memory, and then as much as fits goes "
                     "through the page cache."));
  t.push_back(integer(FIELD(threads), 0, 1024, "CPU threads; 0: one per hardware thread."));
}

void add_lora_fields(std::vector<ConfigField>& t) {
  t.push_back(integer(FIELD(lora.rank), 1, 4096, "Rank of every adapter."));
  t.push_back(alpha_field());
  t.push_back(targets_field());
  t.push_back(
      boolean(FIELD(lora.split_qkv),
              "Fused linears get one adapter per part: q, k, v of `qkv`, and q, k, v, mlp of `linear1`, each of "
              "the full rank, as diffusers and ai-toolkit train. False: one adapter over all parts, as kohya "
              "trains. Files in kohya's naming join the parts, and their ranks add up."));
  t.push_back(choice(FIELD(lora.init),
                     std::vector<std::pair<std::string, LoraConfig::Init>>{{"kaiming", LoraConfig::Init::kKaiming},
                                                                           {"gaussian", LoraConfig::Init::kGaussian}},
                     "First values of the down-projection A; B starts at zero. `kaiming`: uniform in +-1/sqrt(inputs). "
                     "`gaussian`: normal with standard deviation 1/rank."));
  t.push_back(overrides_field());
  t.push_back(
      number(FIELD(lora.rank_dropout), {.low = 0.0, .high = 1.0, .open_high = true},
             "Share of the ranks of each adapter that a sample is trained without, chosen at random; the others "
             "are scaled up to make up for them."));
  t.push_back(path_to(FIELD(lora.start_from), "a path",
                      Doc{"LoRA file, of any naming, whose values the adapters start with. `lora.targets` must include "
                          "all it changes, with at least its rank; terms beyond its rank start as `lora.init` says.",
                          false, "adapters start as `lora.init` says"}));
}

}  // namespace

const std::vector<ConfigField>& config_fields() {
  static const std::vector<ConfigField> table = [] {
    TrainConfig probe;
    std::vector<ConfigField> t;
    add_file_fields(t);
    add_run_fields(t);
    add_data_fields(t);
    add_lora_fields(t);
    add_training_fields(t);
    for (ConfigField& field : t) {
      const bool meaning = field.section() == "data" || field.section() == "lora";
      field.kept = field.kept || (meaning && field.file_path(probe) == nullptr);
    }
    return t;
  }();
  return table;
}

}  // namespace squareq
