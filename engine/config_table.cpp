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

ConfigField betas_field() {
  ConfigField field;
  field.path = "training.betas";
  field.expected = "two numbers from 0 to below 1";
  field.schema = {{"type", "array"},
                  {"items", {{"type", "number"}, {"minimum", 0}, {"exclusiveMaximum", 1}}},
                  {"minItems", 2},
                  {"maxItems", 2}};
  field.doc = "How slowly AdamW's two moments forget.";
  field.set = [](TrainConfig& c, const Json& value) {
    if (!value.is_array() || value.size() != 2) return false;
    std::array<double, 2> betas{};
    for (std::size_t i = 0; i < 2; ++i) {
      if (!read_number(value[i], {.low = 0.0, .high = 1.0, .open_high = true}, betas[i])) return false;
    }
    c.training.betas = betas;
    return true;
  };
  field.get = [](const TrainConfig& c) { return Json(c.training.betas); };
  return field;
}

ConfigField seed_field() {
  ConfigField field;
  field.path = "training.seed";
  field.expected = "an integer from 0 to 18446744073709551615";
  field.schema = {{"type", "integer"}, {"minimum", 0}, {"maximum", UINT64_MAX}};
  field.doc = "Of the order of samples, noise, noise levels and the adapters' first values. Same seed, same run.";
  field.set = [](TrainConfig& c, const Json& value) {
    if (!value.is_number_unsigned()) return false;
    c.training.seed = value.get<std::uint64_t>();
    return true;
  };
  field.get = [](const TrainConfig& c) { return Json(c.training.seed); };
  return field;
}

ConfigField alpha_field() {
  const Range range{.low = 0.0, .high = 65536.0, .open_low = true};
  ConfigField field;
  field.path = "lora.alpha";
  field.schema = range.schema();
  field.expected = "a number " + range.text();
  field.doc = "The adapters' output is scaled by alpha / rank.";
  field.absent = "`lora.rank`";
  field.set = [=](TrainConfig& c, const Json& value) { return read_number(value, range, c.lora.alpha); };
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
  t.push_back(
      integer(FIELD(save_every), 0, kMany, "Also save the LoRA after every so many steps; 0: only at the end."));
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
  t.push_back(path_to(FIELD(lora.start_from), "a path",
                      Doc{"LoRA file, of any naming, whose values the adapters start with. `lora.targets` must include "
                          "all it changes, with at least its rank; terms beyond its rank start as `lora.init` says.",
                          false, "adapters start as `lora.init` says"}));
}

void add_optimizer_fields(std::vector<ConfigField>& t) {
  using Schedule = TrainingConfig::Schedule;
  t.push_back(integer(FIELD(training.steps), 1, kMany, "Updates of the adapters."));
  t.push_back(integer(FIELD(training.batch_size), 1, 1024, "Samples computed together."));
  t.push_back(integer(FIELD(training.accumulation), 1, 65536, "Batches whose gradients are averaged into one update."));
  t.push_back(seed_field());
  t.push_back(
      number(FIELD(training.learning_rate), {.low = 0.0, .high = 1.0, .open_low = true}, "Largest learning rate."));
  t.push_back(
      choice(FIELD(training.lr_schedule),
             std::vector<std::pair<std::string, Schedule>>{
                 {"constant", Schedule::kConstant}, {"linear", Schedule::kLinear}, {"cosine", Schedule::kCosine}},
             "Course of the learning rate after warm-up: kept, or lowered to zero at the last step."));
  t.push_back(integer(FIELD(training.warmup_steps), 0, kMany,
                      "Steps over which the learning rate rises linearly from zero; at most `training.steps`."));
  t.push_back(betas_field());
  t.push_back(number(FIELD(training.epsilon), {.low = 0.0, .high = 1.0, .open_low = true}, "AdamW's epsilon."));
  t.push_back(number(FIELD(training.weight_decay), {.low = 0.0, .high = 1.0}, "AdamW's decoupled weight decay."));
  t.push_back(number(FIELD(training.max_grad_norm), {.low = 0.0, .high = 1e6},
                     "Gradients of a larger norm, taken over all adapters, are scaled down to it; 0: never."));
}

void add_noise_fields(std::vector<ConfigField>& t) {
  using Timesteps = TrainingConfig::Timesteps;
  t.push_back(choice(FIELD(training.timestep_sampling),
                     std::vector<std::pair<std::string, Timesteps>>{{"uniform", Timesteps::kUniform},
                                                                    {"sigmoid", Timesteps::kSigmoid},
                                                                    {"logit_normal", Timesteps::kLogitNormal},
                                                                    {"shift", Timesteps::kShift},
                                                                    {"flux_shift", Timesteps::kFluxShift}},
                     "How noise levels sigma in (0, 1) are drawn, with n normal. `sigmoid`: sigmoid(sigmoid_scale n). "
                     "`logit_normal`: sigmoid(logit_mean + logit_std n). `shift`: as sigmoid, then s sigma / (1 + (s - "
                     "1) sigma) with s = `training.shift`. `flux_shift`: the same with the s that FLUX uses for this "
                     "resolution."));
  t.push_back(number(FIELD(training.sigmoid_scale), {.low = 0.0, .high = 100.0, .open_low = true},
                     "For `sigmoid`, `shift` and `flux_shift`."));
  t.push_back(number(FIELD(training.logit_mean), {.low = -20.0, .high = 20.0}, "For `logit_normal`."));
  t.push_back(number(FIELD(training.logit_std), {.low = 0.0, .high = 20.0, .open_low = true}, "For `logit_normal`."));
  t.push_back(number(FIELD(training.shift), {.low = 0.0, .high = 100.0, .open_low = true},
                     "For `shift`; above 1 favours high noise."));
  t.push_back(number(FIELD(training.guidance), {.low = 0.0, .high = 100.0},
                     "Guidance value that a guidance-distilled model sees in training. 1 keeps what it learnt about "
                     "other values."));
  t.push_back(boolean(FIELD(training.activation_checkpointing),
                      "Keep only each block's input and compute the block again for its backward pass: less memory, "
                      "about a third more work."));
}

}  // namespace

const std::vector<ConfigField>& config_fields() {
  static const std::vector<ConfigField> table = [] {
    std::vector<ConfigField> t;
    add_file_fields(t);
    add_run_fields(t);
    add_data_fields(t);
    add_lora_fields(t);
    add_optimizer_fields(t);
    add_noise_fields(t);
    return t;
  }();
  return table;
}

}  // namespace squareq
