// The table's rows about training itself, validation and previews.
#include <utility>

#include "engine/config_rows.h"

namespace squareq {
namespace {

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

ConfigField prompts_field() {
  ConfigField field;
  field.path = "preview.prompts";
  field.expected = "a list of at most 64 texts of at most 4096 bytes";
  field.schema = {
      {"type", "array"}, {"items", {{"type", "string"}, {"minLength", 1}, {"maxLength", 4096}}}, {"maxItems", 64}};
  field.doc = "What to draw; none: no previews.";
  field.set = [](TrainConfig& c, const Json& value) {
    if (!value.is_array() || value.size() > 64) return false;
    std::vector<std::string> prompts;
    for (const Json& entry : value) {
      if (!read_text_value(entry, prompts.emplace_back())) return false;
    }
    c.preview.prompts = std::move(prompts);
    return true;
  };
  field.get = [](const TrainConfig& c) { return Json(c.preview.prompts); };
  return field;
}

ConfigField preview_size_field() {
  const Json side{{"type", "integer"}, {"minimum", 16}, {"maximum", 4096}, {"multipleOf", 16}};
  ConfigField field;
  field.path = "preview.size";
  field.expected = "[width, height], each a multiple of 16 from 16 to 4096";
  field.schema = {{"type", "array"}, {"items", side}, {"minItems", 2}, {"maxItems", 2}};
  field.doc = "Size of the pictures in pixels.";
  field.absent = "the largest of `data.resolution`";
  field.set = [](TrainConfig& c, const Json& value) {
    if (!value.is_array() || value.size() != 2) return false;
    std::array<std::int64_t, 2> size{};
    for (std::size_t i = 0; i < 2; ++i) {
      if (!read_integer(value[i], 16, 4096, size[i]) || size[i] % 16 != 0) return false;
    }
    c.preview.size = size;
    return true;
  };
  field.get = [](const TrainConfig& c) { return c.preview.size[0] == 0 ? Json() : Json(c.preview.size); };
  return field;
}

// Without it, a resumed run would train something else.
ConfigField kept(ConfigField field) {
  field.kept = true;
  return field;
}

void add_run_length_fields(std::vector<ConfigField>& t) {
  using Schedule = TrainingConfig::Schedule;
  t.push_back(integer(FIELD(training.steps), 1, kMany, "Updates of the adapters."));
  t.push_back(kept(integer(FIELD(training.batch_size), 1, 1024, "Samples computed together.")));
  t.push_back(
      kept(integer(FIELD(training.accumulation), 1, 65536, "Batches whose gradients are averaged into one update.")));
  t.push_back(kept(seed_field()));
  t.push_back(
      number(FIELD(training.learning_rate), {.low = 0.0, .high = 1.0, .open_low = true}, "Largest learning rate."));
  t.push_back(choice(FIELD(training.lr_schedule),
                     std::vector<std::pair<std::string, Schedule>>{{"constant", Schedule::kConstant},
                                                                   {"linear", Schedule::kLinear},
                                                                   {"cosine", Schedule::kCosine},
                                                                   {"cosine_with_restarts", Schedule::kCosineRestarts},
                                                                   {"polynomial", Schedule::kPolynomial}},
                     "Course of the learning rate after warm-up: kept, or lowered to `training.lr_end` at the last "
                     "step."));
  t.push_back(integer(FIELD(training.warmup_steps), 0, kMany,
                      "Steps over which the learning rate rises linearly from zero; at most `training.steps`."));
  t.push_back(integer(FIELD(training.lr_cycles), 1, 10000,
                      "For `cosine_with_restarts`: how often it falls from the largest learning rate."));
  t.push_back(number(FIELD(training.lr_power), {.low = 0.0, .high = 100.0, .open_low = true},
                     "For `polynomial`: the exponent; 1 is linear."));
  t.push_back(number(FIELD(training.lr_end), {.low = 0.0, .high = 1.0},
                     "Learning rate at the end of falling schedules, as a share of `training.learning_rate`."));
}

void add_optimizer_fields(std::vector<ConfigField>& t) {
  using Optimizer = TrainingConfig::Optimizer;
  t.push_back(kept(choice(FIELD(training.optimizer),
                          std::vector<std::pair<std::string, Optimizer>>{{"adamw", Optimizer::kAdamW},
                                                                         {"adamw8bit", Optimizer::kAdamW8Bit}},
                          "AdamW with moments in float32, or in 8 bits with a scale for each 256 values: a quarter of "
                          "their memory.")));
  t.push_back(betas_field());
  t.push_back(number(FIELD(training.epsilon), {.low = 0.0, .high = 1.0, .open_low = true}, "AdamW's epsilon."));
  t.push_back(number(FIELD(training.weight_decay), {.low = 0.0, .high = 1.0}, "AdamW's decoupled weight decay."));
  t.push_back(number(FIELD(training.max_grad_norm), {.low = 0.0, .high = 1e6},
                     "Gradients of a larger norm, taken over all adapters, are scaled down to it; 0: never."));
  t.push_back(kept(number(FIELD(training.ema_decay), {.low = 0.0, .high = 1.0, .open_high = true},
                          "Share that the running average of the adapters keeps at each update, less at first: at most "
                          "(1 + n) / (10 + n) at update n. Files, previews and validation then use the average. 0: "
                          "there is none.")));
  t.push_back(number(FIELD(training.spike_factor), {.low = 0.0, .high = 1e9},
                     "A step whose gradient has a norm of more than this times its running mean is skipped, from the "
                     "21st update on; 0: never. A loss or gradient that is not finite is always skipped."));
  t.push_back(integer(FIELD(training.max_skips), 0, kMany,
                      "Steps that may be skipped in a row; at the next one the run saves its state and stops."));
}

void add_noise_fields(std::vector<ConfigField>& t) {
  using Timesteps = TimestepSampling;
  t.push_back(kept(choice(
      FIELD(training.timestep_sampling),
      std::vector<std::pair<std::string, Timesteps>>{{"uniform", Timesteps::kUniform},
                                                     {"sigmoid", Timesteps::kSigmoid},
                                                     {"logit_normal", Timesteps::kLogitNormal},
                                                     {"shift", Timesteps::kShift},
                                                     {"flux_shift", Timesteps::kFluxShift},
                                                     {"sigma", Timesteps::kSigma},
                                                     {"mode", Timesteps::kMode},
                                                     {"content", Timesteps::kContent},
                                                     {"style", Timesteps::kStyle}},
      "How noise levels sigma in (0, 1) are drawn, with n normal and u uniform. `sigmoid`: sigmoid(sigmoid_scale n). "
      "`logit_normal`: sigmoid(logit_mean + logit_std n). `shift`: as sigmoid, then s sigma / (1 + (s - "
      "1) sigma) with s = `training.shift`. `flux_shift`: the same with the s that FLUX uses for this "
      "resolution. `sigma`: one of the levels 1, 0.999, .., 0.001, then as in `shift`. `mode`: the same with more "
      "of the middle. `content`: 1 - u^3. `style`: u^3.")));
  t.push_back(kept(number(FIELD(training.sigmoid_scale), {.low = 0.0, .high = 100.0, .open_low = true},
                          "For `sigmoid`, `shift` and `flux_shift`.")));
  t.push_back(kept(number(FIELD(training.logit_mean), {.low = -20.0, .high = 20.0}, "For `logit_normal`.")));
  t.push_back(
      kept(number(FIELD(training.logit_std), {.low = 0.0, .high = 20.0, .open_low = true}, "For `logit_normal`.")));
  t.push_back(kept(number(FIELD(training.shift), {.low = 0.0, .high = 100.0, .open_low = true},
                          "For `shift`, `sigma` and `mode`; above 1 favours high noise.")));
  t.push_back(kept(number(FIELD(training.mode_scale), {.low = -10.0, .high = 10.0}, "For `mode`.")));
  t.push_back(kept(number(FIELD(training.sigma_min), {.low = 0.0, .high = 1.0, .open_high = true},
                          "Noise levels are mapped linearly onto the range from here ..")));
  t.push_back(kept(
      number(FIELD(training.sigma_max), {.low = 0.0, .high = 1.0, .open_low = true}, ".. to here, which is larger.")));
  t.push_back(
      kept(number(FIELD(training.guidance), {.low = 0.0, .high = 100.0},
                  "Guidance value that a guidance-distilled model sees in training. 1 keeps what it learnt about "
                  "other values.")));
}

void add_loss_fields(std::vector<ConfigField>& t) {
  t.push_back(kept(choice(
      FIELD(training.loss),
      std::vector<std::pair<std::string, LossKind>>{{"l2", LossKind::kSquared}, {"huber", LossKind::kHuber}},
      "Of the difference d from the velocity that was wanted. `l2`: d^2. `huber`: 2 c (sqrt(d^2 + c^2) - c), which "
      "large differences enter in proportion to their size.")));
  t.push_back(
      kept(number(FIELD(training.huber_c), {.low = 0.0, .high = 100.0, .open_low = true}, "The c of `huber`.")));
  t.push_back(
      kept(choice(FIELD(training.loss_weighting),
                  std::vector<std::pair<std::string, LossWeighting>>{{"none", LossWeighting::kNone},
                                                                     {"sigma_sqrt", LossWeighting::kSigmaSqrt},
                                                                     {"cosmap", LossWeighting::kCosmap},
                                                                     {"bell", LossWeighting::kBell},
                                                                     {"bell_flat", LossWeighting::kBellFlat}},
                  "Factor of the loss by noise level. `sigma_sqrt`: sigma^-2. `cosmap`: 2 / (pi (1 - 2 sigma + "
                  "2 sigma^2)). `bell`: most in the middle, none at the ends. `bell_flat`: as `bell` above 1/2, "
                  "below it as there.")));
  t.push_back(
      kept(number(FIELD(training.noise_offset), {.low = 0.0, .high = 1.0},
                  "Deviation of a normal number that is added to all noise of one latent channel of a picture.")));
}

void add_validation_fields(std::vector<ConfigField>& t) {
  t.push_back(
      path_to(FIELD(validation.folder), "a path",
              Doc{"Pictures with captions that are not trained on, brought to the sizes of `data`. Their loss is "
                  "measured at fixed noise and noise levels and logged as `validation_loss`.",
                  false, "there is no validation"}));
  t.push_back(integer(FIELD(validation.every), 1, kMany,
                      "Steps between measurements; also before the first step and "
                      "after the last."));
  t.push_back(integer(FIELD(validation.draws), 1, 1000,
                      "Noise levels for each picture: the middles of so many equally "
                      "likely parts of sigmoid(normal)."));
}

void add_preview_fields(std::vector<ConfigField>& t) {
  t.push_back(prompts_field());
  t.push_back(integer(FIELD(preview.every), 1, kMany,
                      "Steps between previews; also before the first step and after "
                      "the last."));
  t.push_back(preview_size_field());
  t.push_back(integer(FIELD(preview.steps), 1, 1000, "Euler steps of a picture."));
  t.push_back(number(FIELD(preview.guidance), {.low = 0.0, .high = 1000.0}, "Distilled guidance."));
  t.push_back(row(
      "preview.seed", "an integer from 0 to 18446744073709551615",
      {"Of the noise that pictures start from: prompt number i, from 0, has seed + i."},
      [](auto& c) -> auto& { return c.preview.seed; }, {{"type", "integer"}, {"minimum", 0}, {"maximum", UINT64_MAX}},
      [](TrainConfig& c, const Json& value) {
        if (!value.is_number_unsigned()) return false;
        c.preview.seed = value.get<std::uint64_t>();
        return true;
      }));
}

}  // namespace

void add_training_fields(std::vector<ConfigField>& t) {
  add_run_length_fields(t);
  add_optimizer_fields(t);
  add_loss_fields(t);
  add_noise_fields(t);
  t.push_back(boolean(FIELD(training.activation_checkpointing),
                      "Keep only each block's input and compute the block again for its backward pass: less memory, "
                      "about a third more work."));
  add_validation_fields(t);
  add_preview_fields(t);
}

}  // namespace squareq
