// squareq-bench: is it right, and how fast is it?
#include <CLI/CLI.hpp>

#include "apps/bench/attention.h"
#include "apps/bench/data.h"
#include "apps/bench/decode.h"
#include "apps/bench/gemm.h"
#include "apps/bench/inference.h"
#include "apps/bench/operations.h"
#include "apps/bench/parity.h"
#include "apps/bench/plans.h"
#include "apps/bench/replay.h"
#include "apps/bench/speed.h"
#include "apps/bench/stream.h"
#include "apps/bench/tokens.h"
#include "apps/device_options.h"
#include "apps/program.h"
#include "engine/evaluation.h"
#include "engine/pipeline.h"
#include "engine/run_setup.h"
#include "engine/saved_lora.h"

namespace squareq::bench {
namespace {

// Loss of a configuration's data over fixed draws, with the adapters of a LoRA file or without any.
int run_loss(const std::string& config_path, const std::string& lora, std::int64_t draws, bool json) {
  TrainConfig config = load_train_config(config_path);
  const ModelParts parts = configured_parts(config);
  const std::unique_ptr<Device> device = open_device(config.device, config.threads, config.compute);
  const Slab slab = open_slab(config, parts);
  config.validation.folder.clear();
  config.preview.prompts.clear();
  const TrainingSet data = RunSetup(config, parts, slab, *device).encode(std::nullopt).data;
  SavedLoras loras;
  if (!lora.empty()) loras = load_loras({lora}, slab.flux_shape());
  FluxEngine engine(
      *device, slab,
      {.batch = config.training.batch_size, .sequences = sequences_of(data), .residency = {}, .lora = loras.targets});
  loras.upload(engine);
  const double loss = fixed_draw_loss(engine, data, 0, draws, config.training.guidance);
  if (json) {
    fmt::print("{}\n", nlohmann::json{{"loss", loss}, {"draws", draws}}.dump());
  } else {
    fmt::print("loss over {} samples x {} noise levels: {:.6f}\n", data.samples.size(), draws, loss);
  }
  return 0;
}

}  // namespace
}  // namespace squareq::bench

int main(int argc, char** argv) {
  using namespace squareq::bench;
  CLI::App app("Compares squareq with recorded results of the original code, and measures its speed.");
  app.require_subcommand(1);
  bool json = false;
  app.add_flag("--json", json, "print JSON");
  int threads = 0;
  app.add_option("--threads", threads, "0: one per hardware thread")->check(CLI::Range(0, 1024));
  std::string device = "auto";
  squareq::DeviceOptions compute;
  squareq::add_device_options(app, device, compute);
  app.fallthrough();  // these may also stand after the command

  ParityOptions parity;
  auto* parity_command = app.add_subcommand("parity", "compare a network with a file of recorded tensors");
  parity_command->add_option("MODEL", parity.model, "checkpoint")->required();
  parity_command->add_option("IO", parity.io, "recorded inputs and outputs (safetensors)")->required();
  parity_command->add_option("--config", parity.config, "JSON file with shape values the checkpoint lacks");
  parity_command->add_flag("--float", parity.float_only, "only what runs on float weights");
  parity_command->add_option("--tolerance", parity.tolerance, "limit of every relative L2 error");

  ReplayOptions replay;
  auto* replay_command = app.add_subcommand("pipeline", "replay a recorded sampling run of a whole model");
  replay_command->add_option("MODEL_DIR", replay.model_dir, "model folder")->required();
  replay_command->add_option("IO", replay.io, "recorded run (safetensors)")->required();
  replay_command->add_option("--tolerance", replay.tolerance, "limit of every relative L2 error but that of ids");

  std::string tokens_dir, tokens_file;
  auto* tokens_command = app.add_subcommand("tokens", "compare our token ids with a list of reference ids");
  tokens_command->add_option("MODEL_DIR", tokens_dir, "folder with tokenizer/ and tokenizer_2/")->required();
  tokens_command->add_option("FILE", tokens_file, "JSON list of {text, t5, clip}")->required();

  std::string config, lora;
  std::int64_t draws = 64;
  auto* loss_command = app.add_subcommand("loss", "loss of a configuration's data over fixed noise and noise levels");
  loss_command->add_option("CONFIG", config, "as for squareq-train")->required();
  loss_command->add_option("--lora", lora, "LoRA file, or FILE:STRENGTH");
  loss_command->add_option("--draws", draws, "noise levels for each picture")->check(CLI::Range(1, 100000));

  std::string data_output;
  std::int64_t data_steps = 4;
  auto* data_command = app.add_subcommand("data", "record what the first steps of a run train on");
  data_command->add_option("CONFIG", config, "as for squareq-train")->required();
  data_command->add_option("--steps", data_steps)->check(CLI::Range(1, 1000))->capture_default_str();
  data_command->add_option("-o,--output", data_output, "safetensors file")->required();

  DecodeOptions decode;
  auto* decode_command = app.add_subcommand("decode", "rate of decoding JPEG pictures, against libjpeg-turbo alone");
  decode_command->add_option("FILES", decode.files, "JPEG pictures")->required();

  SpeedOptions speed;
  std::int64_t size = 2048;
  auto* gemm_command =
      app.add_subcommand("gemm", "rates of matrix products: of OpenBLAS, or of linear layers on a GPU");
  gemm_command->add_option("--size", size, "of the square matrices, on the CPU")
      ->check(CLI::Range(1, 20000))
      ->capture_default_str();
  auto* block_command = app.add_subcommand("block", "time of every kind of stage");
  auto* step_command = app.add_subcommand("step", "time and rate of a training step");
  auto* stream_command = app.add_subcommand("stream", "training steps with streamed weights, by host path");
  StreamOptions stream;
  stream_command->add_option("--host-path", stream.paths, "registered, ring or direct; all of them if not given")
      ->transform(CLI::CheckedTransformer(
                      std::map<std::string, squareq::HostPath>{{"registered", squareq::HostPath::kRegistered},
                                                               {"ring", squareq::HostPath::kRing},
                                                               {"direct", squareq::HostPath::kDirect}})
                      .description(""))
      ->type_name("PATH");
  stream_command->add_option("--slots", stream.slots, "of device memory for the weights")
      ->check(CLI::Range(3, 1000))
      ->capture_default_str();
  stream_command->add_option("--readers", stream.readers, "threads; 0: chosen")->check(CLI::Range(0, 256));
  stream_command->add_flag("!--no-resident", stream.resident, "do not measure with all weights on the device");
  auto* plans_command = app.add_subcommand("plans", "the planner's choice against others, within a budget");
  int random_plans = 10;
  plans_command->add_option("--random", random_plans, "random choices to compare with")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  auto* sampling_command = app.add_subcommand("sampling", "time of a sampling step");
  auto* t5_command = app.add_subcommand("t5", "time of a prompt in the T5 encoder");
  auto* vae_command = app.add_subcommand("vae", "time of the autoencoder on a picture of 16 x 16 pixels per token");
  for (auto* command : {block_command, step_command, stream_command, plans_command, sampling_command, t5_command}) {
    command->add_option("SLAB", speed.slab, "slab of the network (squareq-slab build or synth)")->required();
    command->add_option("--text", speed.text, "text tokens")->check(CLI::Range(1, 4096))->capture_default_str();
  }
  for (auto* command : {block_command, step_command, stream_command, plans_command, sampling_command, vae_command}) {
    command->add_option("--rows", speed.rows, "of image tokens")->check(CLI::Range(1, 1024))->capture_default_str();
    command->add_option("--cols", speed.cols, "of image tokens")->check(CLI::Range(1, 1024))->capture_default_str();
  }
  for (auto* command : {block_command, step_command, stream_command, plans_command, sampling_command}) {
    command->add_option("--batch", speed.batch)->check(CLI::Range(1, 1024))->capture_default_str();
  }
  for (auto* command : {block_command, step_command, stream_command, plans_command}) {
    command->add_option("--rank", speed.rank)->check(CLI::Range(1, 1024))->capture_default_str();
    command->add_option("--targets", speed.targets, "linears with an adapter")
        ->check(CLI::IsMember({"attention", "attention+mlp", "all-linear"}))
        ->capture_default_str();
    command->add_flag("--checkpointing", speed.checkpointing, "recompute activations in the backward pass");
  }
  for (auto* command : {step_command, plans_command, t5_command}) {
    command->add_option("--budget", speed.budget, "GiB of device memory to keep to; 0: everything stays there")
        ->check(CLI::Range(0.0, 4096.0));
  }
  for (auto* command : {step_command, sampling_command}) {
    command->add_flag("--prepared", speed.prepared, "keep copies of the blocks' weights as products read them");
  }
  step_command->get_option("--prepared")->excludes("--budget");  // where the plan chooses
  AttentionOptions attention;
  auto* attention_command =
      app.add_subcommand("attention", "rate and error of every implementation of attention on a GPU");
  attention_command->add_option("--tokens", attention.tokens, "one or several lengths")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  attention_command->add_option("--heads", attention.heads)->check(CLI::Range(1, 256))->capture_default_str();
  attention_command->add_option("--features", attention.features, "of a head")
      ->check(CLI::Range(1, 128))
      ->capture_default_str();
  for (auto* command : {gemm_command, block_command, step_command, stream_command, plans_command, sampling_command,
                        t5_command, vae_command, attention_command}) {
    command->add_option("--repeats", speed.repeats, "the median counts")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
  }

  OperationsOptions operations;
  auto* operations_command = app.add_subcommand("operations", "time and rate of the operations of FLUX's blocks");
  operations_command->add_option("--tokens", operations.tokens)->check(CLI::Range(1, 100000))->capture_default_str();
  operations_command->add_option("--rank", operations.rank)->check(CLI::Range(1, 1024))->capture_default_str();
  operations_command->add_option("--repeats", operations.repeats)->check(CLI::Range(1, 1000))->capture_default_str();

  return squareq::run_program(app, argc, argv, [&] {
    parity.threads = replay.threads = speed.threads = threads;
    parity.compute = replay.compute = speed.compute = operations.compute = compute;
    parity.device = replay.device = speed.device = operations.device = device;
    speed.json = operations.json = json;
    if (*parity_command) return report(run_parity(parity), json);
    if (*replay_command) return report(run_replay(replay), json);
    if (*tokens_command) return run_tokens(tokens_dir, tokens_file, json);
    if (*data_command) return run_data(config, data_steps, data_output);
    if (*decode_command) {
      decode.threads = threads;
      return run_decode(decode, json);
    }
    if (*loss_command) return run_loss(config, lora, draws, json);
    if (*gemm_command) return run_gemm(size, speed);
    if (*stream_command) return run_stream(speed, stream);
    if (*plans_command) return run_plans(speed, random_plans);
    if (*sampling_command) return run_sampling(speed);
    if (*t5_command) return run_t5(speed);
    if (*vae_command) return run_vae(speed);
    if (*attention_command) {
      attention.repeats = speed.repeats;
      attention.threads = threads;
      attention.json = json;
      return run_attention(attention);
    }
    if (*operations_command) return run_operations(operations);
    return *block_command ? run_block(speed) : run_step(speed);
  });
}
