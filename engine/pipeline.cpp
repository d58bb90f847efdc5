#include "engine/pipeline.h"

#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <filesystem>

#include "engine/identity.h"
#include "engine/progress_log.h"
#include "io/checkpoint.h"
#include "io/slab_build.h"
#include "kernels/base/error.h"

namespace squareq {
namespace fs = std::filesystem;
namespace {

bool is_slab(const std::string& path) { return fs::is_regular_file(path) && path.ends_with(".slab"); }

}  // namespace

std::string ensure_slab(const SlabRequest& request) {
  if (is_slab(request.checkpoint)) return request.checkpoint;
  const char* codec = request.codec == Codec::kFloat ? "float" : "int8";
  std::string path = request.slab;
  if (path.empty()) {
    const std::string identity = model_identity(request.checkpoint).substr(0, 16);
    std::string stem = fmt::format("{}-{}-{}", request.t5 ? "t5" : "flux", identity, codec);
    if (request.axes) stem += fmt::format("-axes{}", fmt::join(*request.axes, "x"));
    path = (fs::path(request.cache_dir) / (stem + ".slab")).string();
  }
  if (fs::exists(path)) return path;
  require_part(request.checkpoint, request.t5 ? "t5" : "transformer", "checkpoint to build a slab from");
  fs::create_directories(fs::absolute(path).parent_path());
  const Checkpoint checkpoint = Checkpoint::open(request.checkpoint, request.t5 ? Model::kT5 : Model::kTransformer);
  SlabShape shape;
  if (request.t5) {
    shape = t5_shape(checkpoint);
  } else {
    std::optional<nlohmann::json> config;
    if (request.axes) config = nlohmann::json{{"axes_dims_rope", *request.axes}};
    shape = flux_shape(checkpoint, config);
  }
  spdlog::info("building {} from {}", path, request.checkpoint);
  ProgressLog log("slab");
  build_slab(checkpoint, shape, path,
             {.codec = request.codec, .threads = request.threads, .progress = [&](const SlabProgress& p) {
                log(static_cast<double>(p.done), static_cast<double>(p.total));
              }});
  return path;
}

Slab open_slab(const TrainConfig& config, const ModelParts& parts) {
  return Slab(ensure_slab({.checkpoint = parts.transformer,
                           .slab = config.slab,
                           .cache_dir = config.cache_dir,
                           .codec = config.quantize == TrainConfig::Quantize::kInt8 ? Codec::kInt8Rows : Codec::kFloat,
                           .axes = config.axes_dims_rope,
                           .threads = static_cast<int>(config.threads)}));
}

std::unique_ptr<Device> open_device(TrainConfig::Device device, std::int64_t threads, const DeviceOptions& options) {
  using Where = TrainConfig::Device;
  const bool cuda = device == Where::kCuda || (device == Where::kAuto && cuda_device_present());
  std::unique_ptr<Device> opened = cuda ? make_cuda_device(options) : make_cpu_device(static_cast<int>(threads));
  if (!opened->choices().empty()) spdlog::info("{}: {}", opened->name(), opened->choices());
  return opened;
}

std::unique_ptr<Device> open_device(const std::string& name, std::int64_t threads, const DeviceOptions& options) {
  if (name == "cuda") return open_device(TrainConfig::Device::kCuda, threads, options);
  return open_device(name == "cpu" ? TrainConfig::Device::kCpu : TrainConfig::Device::kAuto, threads, options);
}

ModelParts configured_parts(const TrainConfig& config) {
  ModelParts parts = config.model.empty() ? ModelParts{} : find_model_parts(config.model);
  const auto replace = [](std::string& part, const std::string& path) {
    if (!path.empty()) part = path;
  };
  replace(parts.transformer, config.transformer);
  replace(parts.vae, config.vae);
  replace(parts.clip, config.clip);
  replace(parts.t5, config.t5);
  replace(parts.tokenizers, config.tokenizers);
  require_part(parts.vae, "vae", "autoencoder");
  require_part(parts.clip, "clip", "CLIP text model");
  require_part(parts.t5, "t5", "T5 encoder");
  require_part(parts.tokenizers, "tokenizers", "folder with tokenizer/ and tokenizer_2/");
  return parts;
}

}  // namespace squareq
