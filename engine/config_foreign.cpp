// What other trainers (kohya's sd-scripts, diffusers' training scripts, ai-toolkit, OneTrainer) call things.
#include "engine/config_table.h"

namespace squareq {
namespace {

constexpr std::string_view kAdamW = "the optimizer is always AdamW: training.betas, epsilon and weight_decay set it up";
constexpr std::string_view kPrecision =
    "there is nothing to choose: adapters learn in F32; quantize and save_dtype set the other types";
constexpr std::string_view kCaptions = "captions are .txt files beside the pictures, nothing is added to them";
constexpr std::string_view kOnlyLora = "every run trains a LoRA";
constexpr std::string_view kCached = "latents and text states are always cached, in cache_dir";
constexpr std::string_view kEpochs = "a run is measured in steps: training.steps";

}  // namespace

const std::vector<ForeignName>& foreign_names() {
  static const std::vector<ForeignName> names = {
      // model and files
      {"pretrained_model_name_or_path", "model", ""},
      {"pretrained_model", "model", ""},
      {"base_model", "model", ""},
      {"base_model_name", "model", ""},
      {"name_or_path", "model", ""},
      {"model_path", "model", ""},
      {"ae", "vae", ""},
      {"vae_path", "vae", ""},
      {"clip_l", "clip", ""},
      {"text_encoder", "clip", ""},
      {"t5xxl", "t5", ""},
      {"text_encoder_2", "t5", ""},
      {"tokenizer", "tokenizers", ""},
      {"fp8_base", "quantize", ""},
      {"base_precision", "quantize", ""},
      {"base_model_precision", "quantize", ""},
      {"output_name", "name", ""},
      {"save_root", "output_dir", ""},
      {"training_folder", "output_dir", ""},
      {"output_model_destination", "output_dir", ""},
      {"cache_latents", "", kCached},
      {"cache_latents_to_disk", "", kCached},
      {"cache_text_encoder_outputs", "", kCached},
      {"cache_text_embeddings", "", kCached},
      // data
      {"train_data_dir", "data.folder", ""},
      {"instance_data_dir", "data.folder", ""},
      {"dataset_path", "data.folder", ""},
      {"folder_path", "data.folder", ""},
      {"image_dir", "data.folder", ""},
      {"datasets", "data.folder", ""},
      {"dataset", "data.folder", ""},
      {"image_size", "data.resolution", ""},
      {"t5xxl_max_token_length", "data.text_length", ""},
      {"max_sequence_length", "data.text_length", ""},
      {"caption_extension", "", kCaptions},
      {"caption_ext", "", kCaptions},
      {"trigger_word", "", kCaptions},
      {"instance_prompt", "", kCaptions},
      {"caption_prefix", "", kCaptions},
      {"caption_dropout_rate", "", "captions are never dropped"},
      {"enable_bucket", "", "every picture is brought to data.resolution"},
      // LoRA
      {"network_dim", "lora.rank", ""},
      {"linear", "lora.rank", ""},
      {"lora_rank", "lora.rank", ""},
      {"lora_dim", "lora.rank", ""},
      {"dim", "lora.rank", ""},
      {"r", "lora.rank", ""},
      {"network_alpha", "lora.alpha", ""},
      {"linear_alpha", "lora.alpha", ""},
      {"lora_alpha", "lora.alpha", ""},
      {"target_modules", "lora.targets", ""},
      {"lora_layers", "lora.targets", ""},
      {"lora_target_modules", "lora.targets", ""},
      {"train_blocks", "lora.targets", ""},
      {"only_if_contains", "lora.targets", ""},
      {"flux_lora_target", "lora.targets", ""},
      {"init_lora_weights", "lora.init", ""},
      {"network", "", "its settings are in the section lora"},
      {"network_module", "", kOnlyLora},
      {"network_type", "", kOnlyLora},
      {"network_dropout", "", "adapters have no dropout"},
      {"lora_dropout", "", "adapters have no dropout"},
      {"network_train_unet_only", "", "text encoders are never trained"},
      {"train_text_encoder", "", "text encoders are never trained"},
      // training
      {"train", "", "its settings are in the section training"},
      {"max_train_steps", "training.steps", ""},
      {"max_steps", "training.steps", ""},
      {"num_train_steps", "training.steps", ""},
      {"max_train_epochs", "", kEpochs},
      {"num_train_epochs", "", kEpochs},
      {"epochs", "", kEpochs},
      {"train_batch_size", "training.batch_size", ""},
      {"micro_batch_size", "training.batch_size", ""},
      {"gradient_accumulation_steps", "training.accumulation", ""},
      {"gradient_accumulation", "training.accumulation", ""},
      {"lr", "training.learning_rate", ""},
      {"unet_lr", "training.learning_rate", ""},
      {"transformer_lr", "training.learning_rate", ""},
      {"lr_scheduler", "training.lr_schedule", ""},
      {"lr_scheduler_type", "training.lr_schedule", ""},
      {"learning_rate_scheduler", "training.lr_schedule", ""},
      {"lr_warmup_steps", "training.warmup_steps", ""},
      {"learning_rate_warmup_steps", "training.warmup_steps", ""},
      {"adam_beta1", "training.betas", ""},
      {"adam_beta2", "training.betas", ""},
      {"adam_epsilon", "training.epsilon", ""},
      {"eps", "training.epsilon", ""},
      {"adam_weight_decay", "training.weight_decay", ""},
      {"clip_grad_norm", "training.max_grad_norm", ""},
      {"gradient_clipping", "training.max_grad_norm", ""},
      {"timestep_type", "training.timestep_sampling", ""},
      {"noise_scheduler", "training.timestep_sampling", ""},
      {"weighting_scheme", "training.timestep_sampling", ""},
      {"timestep_distribution", "training.timestep_sampling", ""},
      {"discrete_flow_shift", "training.shift", ""},
      {"guidance_scale", "training.guidance", ""},
      {"cfg_scale", "training.guidance", ""},
      {"gradient_checkpointing", "training.activation_checkpointing", ""},
      {"optimizer", "", kAdamW},
      {"optimizer_type", "", kAdamW},
      {"optimizer_args", "", kAdamW},
      {"mixed_precision", "", kPrecision},
      {"dtype", "", kPrecision},
      {"full_bf16", "", kPrecision},
      {"model_prediction_type", "", "the model always predicts the flow's velocity"},
      // saving and running
      {"save_every_n_steps", "save_every", ""},
      {"checkpointing_steps", "save_every", ""},
      {"save", "save_every", ""},
      {"save_precision", "save_dtype", ""},
      {"logging_steps", "log_every", ""},
      {"max_data_loader_n_workers", "threads", ""},
      {"num_workers", "threads", ""},
      {"dataloader_num_workers", "threads", ""},
      {"max_cpu_threads", "threads", ""},
  };
  return names;
}

}  // namespace squareq
