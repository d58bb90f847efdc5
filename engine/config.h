// The settings of one training run: a JSON file in, a checked plain struct out.
//
// One table (config_table.cpp) names every field with its type, range and meaning; parsing, validation, the written-out
// form, docs/config.md, configs/schema.json and configs/all-settings.json all come from it, so they cannot disagree.
// Whatever is unknown, of the wrong type or out of range throws ConfigError naming the file and the field, what was
// found and what is expected.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/host_path.h"
#include "io/lora_file.h"
#include "kernels/base/dtype.h"
#include "kernels/device.h"
#include "model/flow_match.h"

namespace squareq {

// Pictures of one folder and how they are used.
struct FolderConfig {
  std::string folder;
  std::int64_t repeats = 1;  // draws of each picture an epoch
  double weight = 1.0;       // of their loss
  bool regularisation = false;
  std::string trigger, prefix, suffix;
  std::string default_caption;   // of pictures that have none; empty: that is an error
  double caption_dropout = 0.0;  // share of draws with an empty caption
  std::int64_t tag_orders = 0;   // random orders of the tags of each caption; 0: as written
  std::int64_t keep_tags = 0;    // first tags that stay in front
  bool flip = false;
  bool alpha_mask = false;
  std::string mask_folder;  // empty: none
  double mask_floor = 0.0;  // weight where a mask is black
};

// The fields of FolderConfig are defaults for all entries of `folders`.
struct DataConfig : FolderConfig {
  enum class Latent : std::uint8_t { kSample, kMean };

  std::vector<FolderConfig> folders;             // with their defaults filled in; after reading, at least one
  std::vector<std::int64_t> resolution;          // rising; sides of the squares whose area buckets have
  std::array<std::int64_t, 2> fixed_size{0, 0};  // width, height of all samples where there are no buckets
  std::int64_t bucket_step = 64;                 // sides of buckets are multiples of it
  bool upscale = false;
  double prior_weight = 1.0;        // of the loss of regularisation folders
  std::int64_t text_length = 0;     // T5 tokens per caption; 0: the model's own length
  Latent latent = Latent::kSample;  // one draw from the encoder's distribution, or its mean

  // The largest width and height that a sample is asked to have.
  std::array<std::int64_t, 2> largest() const {
    return resolution.empty() ? fixed_size : std::array{resolution.back(), resolution.back()};
  }
};

struct LoraConfig {
  enum class Init : std::uint8_t { kKaiming, kGaussian };

  std::int64_t rank = 16;
  double alpha = 0.0;                    // scale = alpha / rank; filled with rank where the file says nothing
  std::string preset = "attention+mlp";  // "attention", "attention+mlp", "all-linear"; empty when patterns are given
  std::vector<std::string> patterns;     // ECMAScript expressions, each matched against whole names of linears
  bool split_qkv = false;                // own adapters for q, k, v (and mlp of single blocks) on fused linears
  Init init = Init::kKaiming;            // of A; B starts at zero
  std::string start_from;                // LoRA file whose values the adapters start with; empty: none
  double rank_dropout = 0.0;             // share of the ranks that a sample does without

  // Rank and alpha of the linears that an expression matches, in place of those above.
  struct Override {
    std::string pattern;
    std::int64_t rank = 0;
    double alpha = 0.0;
  };
  std::vector<Override> overrides;  // the first that matches counts
};

struct TrainingConfig {  // NOLINT(clang-analyzer-optin.performance.Padding): in the order of its documentation
  enum class Schedule : std::uint8_t { kConstant, kLinear, kCosine, kCosineRestarts, kPolynomial };
  enum class Optimizer : std::uint8_t { kAdamW, kAdamW8Bit };

  std::int64_t steps = 1000;      // optimizer steps
  std::int64_t batch_size = 1;    // samples per micro-step
  std::int64_t accumulation = 1;  // micro-steps per optimizer step
  std::uint64_t seed = 42;
  double learning_rate = 1e-4;
  Schedule lr_schedule = Schedule::kConstant;
  std::int64_t warmup_steps = 0;
  std::int64_t lr_cycles = 1;  // of kCosineRestarts
  double lr_power = 1.0;       // of kPolynomial
  double lr_end = 0.0;         // share of learning_rate at the end of falling schedules
  Optimizer optimizer = Optimizer::kAdamW;
  std::array<double, 2> betas{0.9, 0.999};
  double epsilon = 1e-8;
  double weight_decay = 0.01;
  double max_grad_norm = 1.0;   // 0: no clipping
  double ema_decay = 0.0;       // 0: no average
  double spike_factor = 100.0;  // 0: no guard against spikes
  std::int64_t max_skips = 10;  // steps in a row
  LossKind loss = LossKind::kSquared;
  double huber_c = 0.1;
  LossWeighting loss_weighting = LossWeighting::kNone;
  double noise_offset = 0.0;
  TimestepSampling timestep_sampling = TimestepSampling::kFluxShift;
  double sigmoid_scale = 1.0;
  double logit_mean = 0.0;
  double logit_std = 1.0;
  double shift = 3.0;
  double mode_scale = 1.29;
  double sigma_min = 0.0;
  double sigma_max = 1.0;
  double guidance = 1.0;  // input of guidance-distilled models
  bool activation_checkpointing = true;
};

// Loss of pictures that are not trained on.
struct ValidationConfig {
  std::string folder;        // empty: none
  std::int64_t every = 100;  // steps
  std::int64_t draws = 4;    // noise levels for each picture
};

// Pictures drawn with the adapters as they are.
struct PreviewConfig {
  std::vector<std::string> prompts;        // empty: none
  std::int64_t every = 250;                // steps
  std::array<std::int64_t, 2> size{0, 0};  // width, height; 0: that of the data
  std::int64_t steps = 20;
  double guidance = 3.5;
  std::uint64_t seed = 42;
};

struct TrainConfig {
  enum class Quantize : std::uint8_t { kInt8, kNone };
  enum class Device : std::uint8_t { kAuto, kCpu, kCuda };

  std::string source;  // the file this was read from, as shown in messages

  // Paths are absolute or relative to the working directory; empty where the file does not name them.
  std::string model;        // diffusers folder or BFL file
  std::string slab;         // built there if missing; empty: a name in cache_dir
  std::string transformer;  // these five replace the model's own parts
  std::string vae;
  std::string clip;
  std::string t5;
  std::string tokenizers;
  Quantize quantize = Quantize::kInt8;
  std::optional<std::array<std::int64_t, 3>> axes_dims_rope;
  std::string output_dir = "output";
  std::string name = "lora";  // stem of the LoRA files
  std::string cache_dir = "cache";

  DataConfig data;
  LoraConfig lora;
  TrainingConfig training;
  ValidationConfig validation;
  PreviewConfig preview;

  std::int64_t save_every = 0;  // steps; 0: only at the end
  std::int64_t keep_states = 2;
  std::string resume = "auto";  // "auto", "off" or the path of a state
  bool timestamps = true;       // files tell when and how fast the run was
  DType save_dtype = DType::BF16;
  LoraNaming save_format = LoraNaming::kKohya;
  std::int64_t log_every = 1;  // steps
  Device device = Device::kAuto;
  DeviceOptions compute;
  double vram_budget_gb = 0.0;  // GiB of the device, what the driver takes included; 0: no limit of ours
  HostPath host_path = HostPath::kAuto;
  std::int64_t threads = 0;  // 0: one per hardware thread
};

// Reads `path`. Relative paths in the file are relative to its folder. Throws FileError or ConfigError.
TrainConfig load_train_config(const std::string& path);

// The same from text: JSON, // and /* */ comments allowed. `source` names the text in messages, and its folder is where
// relative paths start.
TrainConfig parse_train_config(std::string_view json, const std::string& source);

// Every field with the value that is in force, as indented JSON that parse_train_config reads back to an equal struct.
std::string to_json(const TrainConfig& config);

// The value in force of the setting of this path, as in the file but without quotes; "" if it has none.
std::string setting_text(const TrainConfig& config, std::string_view path);

// A setting whose value is not the same in two configurations. Values are as in the file; "nothing" where there is
// none.
struct ConfigChange {
  std::string path, before, after;
  bool kept = false;  // decides what is trained: a resumed run must not differ in it
};
std::vector<ConfigChange> config_changes(const TrainConfig& before, const TrainConfig& after);

// True if an adapter is wanted on this linear (BFL name without ".weight", e.g. "double_blocks.0.img_attn.qkv").
// "attention": img_attn and txt_attn qkv and proj, and linear1 of single blocks, there on the rows of q, k and v only.
// "attention+mlp": those, whole linear1, linear2, img_mlp and txt_mlp. "all-linear": every linear in a block.
bool is_lora_target(const LoraConfig& lora, std::string_view linear);

// The contents of docs/config.md.
std::string config_reference_markdown();

// The contents of configs/all-settings.json, a configuration with every setting and its meaning.
std::string config_template_json();

// The contents of configs/schema.json, a JSON Schema of configuration files for editors.
std::string config_schema_json();

}  // namespace squareq
