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
  const VaeShape shape = vae_shape(Checkpoint::open(options.model, Model::kVae));
  std::vector<Comparison> list;
  // Every sample by itself, as the pictures of a data set are. `unit`: pixels along a side of what the input has.
  const auto each_sample = [&](const char* input, Autoencoder::Half half, std::int64_t unit, const auto& work) {
    const std::vector<std::int64_t>& dims = io.get(input).shape;
    const PictureSize picture{.height = dims.at(2) * unit, .width = dims.at(3) * unit};
    Autoencoder vae(device, options.model, half, {picture});
    vae.allocate();
    const std::vector<float> values = io.read_f32(input);
    const std::size_t size = values.size() / static_cast<std::size_t>(dims.at(0));
    for (std::size_t b = 0; b * size < values.size(); ++b) {
      const auto begin = values.begin() + static_cast<std::ptrdiff_t>(b * size);
      work(vae, std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(size)), picture);
    }
  };
  if (io.find("image") != nullptr) {
    std::vector<float> moments, means;
    const auto encode = [&](Autoencoder& vae, const std::vector<float>& image, PictureSize picture) {
      const std::vector<float> m = vae.encode(image, picture);
      std::vector<float> mean(m.size() / 2);
      latent_mean(shape, 1, m, mean);
      moments.insert(moments.end(), m.begin(), m.end());
      means.insert(means.end(), mean.begin(), mean.end());
    };
    each_sample("image", Autoencoder::Half::kEncoder, 1, encode);
    if (io.find("moments") != nullptr) list.push_back(check(options, io, "moments", moments));
    if (io.find("latent_mean") != nullptr) list.push_back(check(options, io, "latent_mean", means));
  }
  if (io.find("z") != nullptr) {
    std::vector<float> decoded;
    const auto decode = [&](Autoencoder& vae, const std::vector<float>& z, PictureSize picture) {
      std::vector<float> packed(z.size());
      pack_latent(z, shape.latent_channels, picture.height / shape.factor(), picture.width / shape.factor(), packed);
      const std::vector<float> image = vae.decode(packed, picture);
      decoded.insert(decoded.end(), image.begin(), image.end());
    };
    each_sample("z", Autoencoder::Half::kDecoder, shape.factor(), decode);
    list.push_back(check(options, io, "decoded", decoded));
  }
  return list;
}

std::vector<Comparison> clip_parity(const ParityOptions& options, const SafetensorsFile& io, Device& device) {
  const Checkpoint checkpoint = Checkpoint::open(options.model, Model::kClip);
  const ClipShape shape = clip_shape(checkpoint);
  clip::Weights weights;
  LoadedWeights memory(checkpoint, [&](WeightVisitor& visitor) { clip::weights(visitor, shape, weights); });
  const std::int64_t batch = io.get("ids").shape.at(0);
  const std::int64_t length = io.get("ids").shape.at(1);
  const DeviceTensor hidden(device, batch, length, shape.width);
  const DeviceTensor pooled(device, batch, 1, shape.width);
  clip::Scratch scratch;
  const auto forward = [&](Ops& ops) {
    clip::forward(ops, shape, weights, read_ids(io), scratch, hidden.view, pooled.view);
  };
  const auto layout = [&](Carver& carver) {
    memory.layout(carver);
    clip::layout(carver, shape, device.ops().activation_type(), batch, length, scratch);
  };
  const Arena arena(device, {.layout = layout, .rehearse = forward});
  arena.use();
  memory.upload(device);
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
  const auto layout = [&](Carver& carver) {
    t5::layout(carver, state);
    store.layout(carver, runner.stages());
    runner.layout(carver);
  };
  const Arena arena(device, {.layout = layout, .rehearse = [&](Ops&) { runner.rehearse(); }});
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
