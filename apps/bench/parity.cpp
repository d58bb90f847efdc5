#include "apps/bench/parity.h"

#include <cmath>

#include "apps/bench/temporary.h"
#include "engine/encoders.h"
#include "engine/loaded_weights.h"
#include "io/checkpoint.h"
#include "io/file.h"
#include "io/slab_build.h"
#include "kernels/base/error.h"
#include "model/latent.h"

namespace squareq::bench {
namespace {

Comparison check(const ParityOptions& options, const SafetensorsFile& io, const std::string& name,
                 std::span<const float> value) {
  return compare(name, value, io.read_f32(name), options.tolerance.value_or(kOutputLimit));
}

std::vector<std::int32_t> read_ids(const SafetensorsFile& io) {
  std::vector<std::int32_t> ids;
  for (const float id : io.read_f32("ids")) ids.push_back(static_cast<std::int32_t>(std::lround(id)));
  return ids;
}

// One contiguous float tensor on the device, with its memory.
struct Tensor {
  Tensor(Device& d, std::int64_t batch, std::int64_t rows, std::int64_t cols)
      : device(d),
        memory(d.allocate(static_cast<std::size_t>(batch * rows * cols) * sizeof(float))),
        view(memory.get(), DType::F32, batch, rows, cols) {}

  std::vector<float> values() const {
    std::vector<float> out(static_cast<std::size_t>(view.count()));
    device.download(view, out.data());
    return out;
  }

  Device& device;
  Buffer memory;
  View view;
};

}  // namespace

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
  LoadedWeights memory(checkpoint);
  clip::Weights weights;
  clip::weights(memory, shape, weights);
  const std::int64_t batch = io.get("ids").shape.at(0);
  const std::int64_t length = io.get("ids").shape.at(1);
  clip::Scratch scratch;
  Carver measure;
  clip::layout(measure, shape, batch, length, scratch);
  const Buffer arena = device.allocate(measure.used());
  Carver carver(arena.get(), measure.used());
  clip::layout(carver, shape, batch, length, scratch);
  const Tensor hidden(device, batch, length, shape.width);
  const Tensor pooled(device, batch, 1, shape.width);
  clip::forward(device.ops(), shape, weights, read_ids(io), scratch, hidden.view, pooled.view);
  return {check(options, io, "last_hidden", hidden.values()), check(options, io, "pooled", pooled.values())};
}

std::vector<Comparison> t5_parity(const ParityOptions& options, const SafetensorsFile& io, Device& device) {
  const Checkpoint checkpoint = Checkpoint::open(options.model, Model::kT5);
  const TemporaryFile file("t5.slab");
  build_slab(checkpoint, t5_shape(checkpoint), file.path(), {.codec = Codec::kFloat, .threads = options.threads});
  const Slab slab(file.path());
  SlabStore store(slab);
  t5::State state{.shape = slab.t5_shape(), .batch = io.get("ids").shape.at(0), .length = io.get("ids").shape.at(1)};
  Runner runner(device.ops(), store, t5::stages(state), Keep::kNothing);
  const auto layout = [&](Carver carver) {
    t5::layout(carver, state);
    runner.layout(carver);
    return carver.used();
  };
  const std::size_t bytes = layout({});
  const Buffer arena = device.allocate(bytes);
  layout({arena.get(), bytes});
  state.ids = read_ids(io);
  runner.forward();
  std::vector<float> output(static_cast<std::size_t>(state.output.count()));
  device.download(state.output, output.data());
  return {check(options, io, "last_hidden", output)};
}

std::vector<Comparison> run_parity(const ParityOptions& options) {
  const SafetensorsFile io(options.io);
  const std::unique_ptr<Device> device = make_cpu_device(options.threads);
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
