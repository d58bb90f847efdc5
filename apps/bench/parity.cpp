#include "apps/bench/parity.h"

#include <cmath>

#include "apps/bench/device_tensor.h"
#include "apps/bench/temporary.h"
#include "engine/encoders.h"
#include "engine/loaded_weights.h"
#include "engine/pipeline.h"
#include "io/checkpoint.h"
#include "io/file.h"
#include "io/slab_build.h"
#include "kernels/base/error.h"
#include "model/latent.h"

namespace squareq::bench {
namespace {

Comparison check(const ParityOptions& options, const SafetensorsFile& io, const std::string& name,
                 std::span<const float> value) {
  return compare(name, value, io.read_f32(name), options.limit(kOutputLimit));
}

std::vector<std::int32_t> read_ids(const SafetensorsFile& io) {
  std::vector<std::int32_t> ids;
  for (const float id : io.read_f32("ids")) ids.push_back(static_cast<std::int32_t>(std::lround(id)));
  return ids;
}

}  // namespace

double ParityOptions::limit(double of_float32) const {
  if (tolerance) return *tolerance;
  if (!bf16) return of_float32;
  if (of_float32 <= kOutputLimit) return kBf16OutputLimit;
  return compute.precision == DeviceOptions::Precision::kW8A8 ? kInt8GradientLimit : kBf16GradientLimit;
}

std::optional<nlohmann::json> read_config(const std::string& path) {
  if (path.empty()) return std::nullopt;
  nlohmann::json json = nlohmann::json::parse(read_text(path), nullptr, false);
  if (!json.is_object()) {
    throw FormatError({.where = path, .found = "something else", .expected = "a JSON object"});
  }
  return json;
}

std::vector<Comparison> vae_parity(const ParityOptions& options, const SafetensorsFile& io, Device& device) {
  Autoencoder vae(device, options.model);
  const VaeShape& shape = vae.shape();
  std::vector<Comparison> list;
  // Every sample by itself, as the pictures of a data set are.
  const auto each_sample = [&](const char* input, const auto& work) {
    const std::vector<std::int64_t>& dims = io.get(input).shape;
    const std::vector<float> values = io.read_f32(input);
    const std::size_t size = values.size() / static_cast<std::size_t>(dims.at(0));
    for (std::size_t b = 0; b * size < values.size(); ++b) {
      const auto begin = values.begin() + static_cast<std::ptrdiff_t>(b * size);
      work(std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(size)), dims.at(2), dims.at(3));
    }
  };
  if (io.find("image") != nullptr) {
    std::vector<float> moments, means;
    each_sample("image", [&](const std::vector<float>& image, std::int64_t height, std::int64_t width) {
      const std::vector<float> m = vae.encode(image, height, width);
      std::vector<float> mean(m.size() / 2);
      latent_mean(shape, 1, m, mean);
      moments.insert(moments.end(), m.begin(), m.end());
      means.insert(means.end(), mean.begin(), mean.end());
    });
    if (io.find("moments") != nullptr) list.push_back(check(options, io, "moments", moments));
    if (io.find("latent_mean") != nullptr) list.push_back(check(options, io, "latent_mean", means));
  }
  if (io.find("z") != nullptr) {
    std::vector<float> decoded;
    each_sample("z", [&](const std::vector<float>& z, std::int64_t height, std::int64_t width) {
      std::vector<float> packed(z.size());
      pack_latent(z, shape.latent_channels, height, width, packed);
      const std::vector<float> image = vae.decode(packed, height * shape.factor(), width * shape.factor());
      decoded.insert(decoded.end(), image.begin(), image.end());
    });
    list.push_back(check(options, io, "decoded", decoded));
  }
  return list;
}

std::vector<Comparison> clip_parity(const ParityOptions& options, const SafetensorsFile& io, Device& device) {
  const Checkpoint checkpoint = Checkpoint::open(options.model, Model::kClip);
  const ClipShape shape = clip_shape(checkpoint);
  LoadedWeights memory(checkpoint, device);
  clip::Weights weights;
  clip::weights(memory, shape, weights);
  const std::int64_t batch = io.get("ids").shape.at(0);
  const std::int64_t length = io.get("ids").shape.at(1);
  const DeviceTensor hidden(device, batch, length, shape.width);
  const DeviceTensor pooled(device, batch, 1, shape.width);
  clip::Scratch scratch;
  const auto forward = [&](Ops& ops) {
    clip::forward(ops, shape, weights, read_ids(io), scratch, hidden.view, pooled.view);
  };
  const Arena arena(
      device,
      [&](Carver& carver) { clip::layout(carver, shape, device.ops().activation_type(), batch, length, scratch); },
      forward);
  arena.use();
  forward(device.ops());
  return {check(options, io, "last_hidden", values_of(device, hidden.view)),
          check(options, io, "pooled", values_of(device, pooled.view))};
}

std::vector<Comparison> t5_parity(const ParityOptions& options, const SafetensorsFile& io, Device& device) {
  const Checkpoint checkpoint = Checkpoint::open(options.model, Model::kT5);
  const TemporaryFile file("t5.slab");
  build_slab(checkpoint, t5_shape(checkpoint), file.path(), {.codec = Codec::kFloat, .threads = options.threads});
  const Slab slab(file.path());
  SlabStore store(slab, device);
  t5::State state{.shape = slab.t5_shape(),
                  .batch = io.get("ids").shape.at(0),
                  .length = io.get("ids").shape.at(1),
                  .activations = device.ops().activation_type(),
                  .ids = read_ids(io)};
  Runner runner(device, store, t5::stages(state), Keep::kNothing);
  const Arena arena(
      device,
      [&](Carver& carver) {
        t5::layout(carver, state);
        store.layout(carver, runner.stages());
        runner.layout(carver);
      },
      [&](Ops&) { runner.rehearse(); });
  arena.use();
  runner.forward();
  return {check(options, io, "last_hidden", values_of(device, state.output))};
}

std::vector<Comparison> run_parity(ParityOptions options) {
  const SafetensorsFile io(options.io);
  const std::unique_ptr<Device> device = open_device(options.device, options.threads, options.compute);
  options.bf16 = device->ops().activation_type() == DType::BF16;
  if (io.find("img") != nullptr && io.find("txt") != nullptr) return flux_parity(options, io, *device);
  if (io.find("moments") != nullptr || io.find("decoded") != nullptr) return vae_parity(options, io, *device);
  if (io.find("pooled") != nullptr) return clip_parity(options, io, *device);
  if (io.find("last_hidden") != nullptr) return t5_parity(options, io, *device);
  throw FormatError({.where = options.io,
                     .found = "tensors of no known kind",
                     .expected = "img and txt (transformer), moments or decoded (autoencoder), pooled (CLIP) or "
                                 "last_hidden (T5)"});
}

}  // namespace squareq::bench
