// The settings of one training run: a JSON file in, a checked plain struct out.
//
// One table (config_table.cpp) names every field with its type, range and meaning; parsing, validation, the written-out
// form and docs/config.md all come from it, so they cannot disagree. Whatever is unknown, of the wrong type or out of
// range throws ConfigError naming the file and the field, what was found and what is expected.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/device.h"

namespace squareq {

struct DataConfig {
  enum class Latent : std::uint8_t { kSample, kMean };

  std::string folder;                            // images and their .txt captions
  std::array<std::int64_t, 2> resolution{0, 0};  // width, height in pixels; multiples of 16
  std::int64_t text_length = 0;                  // T5 tokens per caption; 0: the model's own length
  Latent latent = Latent::kSample;               // one draw from the encoder's distribution, or its mean
};

struct LoraConfig {
  enum class Init : std::uint8_t { kKaiming, kGaussian };

  std::int64_t rank = 16;
  double alpha = 0.0;                    // scale = alpha / rank; filled with rank where the file says nothing
  std::string preset = "attention+mlp";  // "attention", "attention+mlp", "all-linear"; empty when patterns are given
  std::vector<std::string> patterns;     // ECMAScript expressions, each matched against whole names of linears
  bool split_qkv = false;                // own adapters for q, k, v (and mlp of single blocks) on fused linears
  Init init = Init::kKaiming;            // of A; B starts at zero
};

struct TrainingConfig {
  enum class Schedule : std::uint8_t { kConstant, kLinear, kCosine };
  enum class Timesteps : std::uint8_t { kUniform, kSigmoid, kLogitNormal, kShift, kFluxShift };

  std::int64_t steps = 1000;      // optimizer steps
  std::int64_t batch_size = 1;    // samples per micro-step
  std::int64_t accumulation = 1;  // micro-steps per optimizer step
  std::uint64_t seed = 42;
  double learning_rate = 1e-4;
  Schedule lr_schedule = Schedule::kConstant;
  std::int64_t warmup_steps = 0;
  std::array<double, 2> betas{0.9, 0.999};
  double epsilon = 1e-8;
  double weight_decay = 0.01;
  double max_grad_norm = 1.0;  // 0: no clipping
  Timesteps timestep_sampling = Timesteps::kFluxShift;
  double sigmoid_scale = 1.0;
  double logit_mean = 0.0;
  double logit_std = 1.0;
  double shift = 3.0;     // of timestep_sampling "shift"
  double guidance = 1.0;  // input of guidance-distilled models
  bool activation_checkpointing = true;
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

  std::int64_t save_every = 0;  // steps; 0: only at the end
  DType save_dtype = DType::BF16;
  std::int64_t log_every = 1;  // steps
  Device device = Device::kAuto;
  DeviceOptions compute;
  std::int64_t threads = 0;  // 0: one per hardware thread
};

// Reads `path`. Relative paths in the file are relative to its folder. Throws FileError or ConfigError.
TrainConfig load_train_config(const std::string& path);

// The same from text: JSON, // and /* */ comments allowed. `source` names the text in messages, and its folder is where
// relative paths start.
TrainConfig parse_train_config(std::string_view json, const std::string& source);

// Every field with the value that is in force, as indented JSON that parse_train_config reads back to an equal struct.
std::string to_json(const TrainConfig& config);

// True if an adapter is wanted on this linear (BFL name without ".weight", e.g. "double_blocks.0.img_attn.qkv").
// "attention": img_attn and txt_attn qkv and proj, and linear1 of single blocks, there on the rows of q, k and v only.
// "attention+mlp": those, whole linear1, linear2, img_mlp and txt_mlp. "all-linear": every linear in a block.
bool is_lora_target(const LoraConfig& lora, std::string_view linear);

// The contents of docs/config.md.
std::string config_reference_markdown();

}  // namespace squareq
