#include "engine/config_table.h"

#include <fmt/format.h>

#include <regex>
#include <utility>

namespace squareq {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kMany = 1'000'000'000;  // steps; noise is keyed by 32-bit step numbers

// Path and accessor of a member in one word, so that a field's name in the file is its name in the struct.
#define FIELD(member) \
#member, [](auto& c) -> auto& { return c.member; }

struct Doc {
  std::string text;
  bool required = false;
  std::string absent;
};

template <class Member>
ConfigField row(std::string path, std::string expected, Doc doc, Member member,
                std::function<bool(TrainConfig&, const Json&)> set) {
  ConfigField field;
  field.path = std::move(path);
  field.expected = std::move(expected);
  field.doc = std::move(doc.text);
  field.required = doc.required;
  field.absent = std::move(doc.absent);
  field.set = std::move(set);
  field.get = [member](const TrainConfig& c) { return Json(member(c)); };
  return field;
}

bool read_integer(const Json& value, std::int64_t low, std::int64_t high, std::int64_t& to) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(high)) return false;
  const auto number = value.get<std::int64_t>();
  if (number < low || number > high) return false;
  to = number;
  return true;
}

// Bounds of a number; `open_low` leaves the lower bound itself out, `open_high` the upper one.
struct Range {
  double low = 0.0;
  double high = 0.0;
  bool open_low = false;
  bool open_high = false;

  bool holds(double x) const {
    return (open_low ? x > low : x >= low) && (open_high ? x < high : x <= high);  // false for NaN
  }
  std::string text() const {
    if (open_low) return fmt::format("above {} and at most {}", low, high);
    return open_high ? fmt::format("from {} to below {}", low, high) : fmt::format("from {} to {}", low, high);
  }
};

bool read_number(const Json& value, const Range& range, double& to) {
  if (!value.is_number()) return false;
  const double number = value.get<double>();
  if (!range.holds(number)) return false;
  to = number;
  return true;
}

bool read_text_value(const Json& value, std::string& to) {
  if (!value.is_string()) return false;
  const auto& text = value.get_ref<const std::string&>();
  if (text.empty() || text.size() > 4096 || text.find('\0') != std::string::npos) return false;
  to = text;
  return true;
}

template <class Member>
ConfigField integer(std::string path, Member member, std::int64_t low, std::int64_t high, std::string text) {
  return row(std::move(path), fmt::format("an integer from {} to {}", low, high), {std::move(text)}, member,
             [=](TrainConfig& c, const Json& value) { return read_integer(value, low, high, member(c)); });
}

template <class Member>
ConfigField number(std::string path, Member member, Range range, std::string text) {
  return row(std::move(path), "a number " + range.text(), {std::move(text)}, member,
             [=](TrainConfig& c, const Json& value) { return read_number(value, range, member(c)); });
}

template <class Member>
ConfigField boolean(std::string path, Member member, std::string text) {
  return row(std::move(path), "true or false", {std::move(text)}, member, [=](TrainConfig& c, const Json& value) {
    if (!value.is_boolean()) return false;
    member(c) = value.get<bool>();
    return true;
  });
}

template <class Member>
ConfigField path_to(std::string path, Member member, std::string what, Doc doc) {
  ConfigField field = row(std::move(path), std::move(what), std::move(doc), member,
                          [=](TrainConfig& c, const Json& value) { return read_text_value(value, member(c)); });
  field.get = [member](const TrainConfig& c) { return member(c).empty() ? Json() : Json(member(c)); };
  field.file_path = [member](TrainConfig& c) { return &member(c); };
  return field;
}

template <class Member, class Value>
ConfigField choice(std::string path, Member member, std::vector<std::pair<std::string, Value>> choices,
                   std::string text) {
  std::string expected;
  for (const auto& [name, value] : choices) expected += fmt::format("{}\"{}\"", expected.empty() ? "" : " or ", name);
  ConfigField field =
      row(std::move(path), std::move(expected), {std::move(text)}, member, [=](TrainConfig& c, const Json& given) {
        for (const auto& [name, value] : choices) {
          if (given != name) continue;
          member(c) = value;
          return true;
        }
        return false;
      });
  field.get = [=](const TrainConfig& c) {
    for (const auto& [name, value] : choices) {
      if (member(c) == value) return Json(name);
    }
    return Json();
  };
  return field;
}

bool read_sides(const Json& value, std::array<std::int64_t, 2>& to) {
  std::array<std::int64_t, 2> sides{};
  if (value.is_array()) {
    if (value.size() != 2) return false;
    if (!read_integer(value[0], 16, 8192, sides[0]) || !read_integer(value[1], 16, 8192, sides[1])) return false;
  } else {
    if (!read_integer(value, 16, 8192, sides[0])) return false;
    sides[1] = sides[0];
  }
  if (sides[0] % 16 != 0 || sides[1] % 16 != 0) return false;
  to = sides;
  return true;
}

ConfigField resolution_field() {
  ConfigField field;
  field.path = "data.resolution";
  field.expected = "[width, height] or one number for both, each a multiple of 16 from 16 to 8192";
  field.doc =
      "Size in pixels that every picture is brought to: scaled to cover it, then cropped around its centre. The model "
      "computes on width x height / 256 image tokens.";
  field.required = true;
  field.set = [](TrainConfig& c, const Json& value) { return read_sides(value, c.data.resolution); };
  field.get = [](const TrainConfig& c) { return c.data.resolution[0] == 0 ? Json() : Json(c.data.resolution); };
  return field;
}

ConfigField axes_field() {
  ConfigField field;
  field.path = "axes_dims_rope";
  field.expected = "three even integers from 2 to 1024";
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
  t.push_back(integer(FIELD(threads), 0, 1024, "CPU threads; 0: one per hardware thread."));
}

void add_data_fields(std::vector<ConfigField>& t) {
  t.push_back(path_to(FIELD(data.folder), "a path",
                      Doc{"Pictures (.png, .jpg, .jpeg, .bmp), each with its caption in a .txt file of the same name. "
                          "Subfolders are not entered.",
                          true, ""}));
  t.push_back(resolution_field());
  t.push_back(integer(FIELD(data.text_length), 0, 4096,
                      "T5 tokens per caption; longer captions are cut. 0: the length the model was made for."));
  t.push_back(
      choice(FIELD(data.latent),
             std::vector<std::pair<std::string, DataConfig::Latent>>{{"sample", DataConfig::Latent::kSample},
                                                                     {"mean", DataConfig::Latent::kMean}},
             "What stands for a picture: one draw from the autoencoder's distribution, always the same for the same "
             "picture, or the distribution's mean."));
}

void add_lora_fields(std::vector<ConfigField>& t) {
  t.push_back(integer(FIELD(lora.rank), 1, 4096, "Rank of every adapter."));
  t.push_back(alpha_field());
  t.push_back(targets_field());
  t.push_back(
      boolean(FIELD(lora.split_qkv),
              "Fused linears get one adapter per part: q, k, v of `qkv`, and q, k, v, mlp of `linear1`, each of "
              "the full rank, as diffusers and ai-toolkit train. False: one adapter over all parts, as kohya "
              "trains. In the file the parts are joined: their rank adds up."));
  t.push_back(choice(FIELD(lora.init),
                     std::vector<std::pair<std::string, LoraConfig::Init>>{{"kaiming", LoraConfig::Init::kKaiming},
                                                                           {"gaussian", LoraConfig::Init::kGaussian}},
                     "First values of the down-projection A; B starts at zero. `kaiming`: uniform in +-1/sqrt(inputs). "
                     "`gaussian`: normal with standard deviation 1/rank."));
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
