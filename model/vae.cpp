#include "model/vae.h"

#include <cmath>
#include <stdexcept>
#include <utility>

#include "model/pool.h"

namespace squareq::vae {
namespace {

constexpr std::int64_t kPixelChannels = 3;

Norm make_norm(std::string name, std::int64_t channels) { return {.name = std::move(name), .channels = channels}; }

Conv make_conv(std::string name, std::int64_t out, std::int64_t in, std::int64_t kernel = 3) {
  return {.name = std::move(name), .out = out, .in = in, .kernel = kernel};
}

Resnet make_resnet(const std::string& name, std::int64_t out, std::int64_t in) {
  Resnet r;
  r.norm1 = make_norm(name + ".norm1", in);
  r.conv1 = make_conv(name + ".conv1", out, in);
  r.norm2 = make_norm(name + ".norm2", out);
  r.conv2 = make_conv(name + ".conv2", out, out);
  if (in != out) r.shortcut.push_back(make_conv(name + ".nin_shortcut", out, in, 1));
  return r;
}

void make_middle(Network& network, const std::string& name, std::int64_t channels) {
  network.mid_1 = make_resnet(name + ".block_1", channels, channels);
  network.mid_2 = make_resnet(name + ".block_2", channels, channels);
  const std::string attention = name + ".attn_1.";
  network.attention.norm = make_norm(attention + "norm", channels);
  network.attention.q = make_conv(attention + "q", channels, channels, 1);
  network.attention.k = make_conv(attention + "k", channels, channels, 1);
  network.attention.v = make_conv(attention + "v", channels, channels, 1);
  network.attention.proj_out = make_conv(attention + "proj_out", channels, channels, 1);
}

// `resample`: name of the convolution after the blocks, empty at the last level.
Level make_level(const std::string& name, std::int64_t blocks, std::int64_t out, std::int64_t in,
                 const std::string& resample) {
  Level level;
  for (std::int64_t b = 0; b < blocks; ++b) {
    level.blocks.push_back(make_resnet(name + ".block." + std::to_string(b), out, b == 0 ? in : out));
  }
  if (!resample.empty()) level.resample.push_back(make_conv(name + resample, out, out));
  return level;
}

void visit(WeightVisitor& visitor, Norm& norm) {
  visitor.tensor(norm.name + ".weight", norm.gain, 1, norm.channels);
  visitor.tensor(norm.name + ".bias", norm.bias, 1, norm.channels);
}

void visit(WeightVisitor& visitor, Conv& conv) {
  visitor.tensor(conv.name + ".weight", conv.weight, conv.out, conv.in * conv.kernel * conv.kernel);
  visitor.tensor(conv.name + ".bias", conv.bias, 1, conv.out);
}

void visit(WeightVisitor& visitor, Resnet& r) {
  visit(visitor, r.norm1);
  visit(visitor, r.conv1);
  visit(visitor, r.norm2);
  visit(visitor, r.conv2);
  for (Conv& conv : r.shortcut) visit(visitor, conv);
}

struct Image {
  Pool::Lease pixels;
  std::int64_t height = 0;
  std::int64_t width = 0;

  const View& view() const { return pixels.view(); }
};

enum class Resample { kNone, kHalf, kDouble };

// One pass. Without ops it only takes and returns buffers, which measures the workspace.
class Pass {
 public:
  Pass(Ops* ops, DType dtype, Pool& pool, const VaeShape& shape)
      : ops_(ops), dtype_(dtype), pool_(pool), shape_(shape) {}

  void encode(const Network& n, ConstView image, std::int64_t height, std::int64_t width, View moments) {
    Image x = start(n.conv_in, image, height, width);
    for (const Level& level : n.levels) x = run_level(level, std::move(x), Resample::kHalf);
    finish(n, middle(n, std::move(x)), moments);
  }

  void decode(const Network& n, ConstView z, std::int64_t height, std::int64_t width, View image) {
    Image x = middle(n, start(n.conv_in, z, height, width));
    for (const Level& level : n.levels) x = run_level(level, std::move(x), Resample::kDouble);
    finish(n, x, image);
  }

 private:
  // Outside the network, images and latents are float32 [B, channels, pixels].
  Image start(const Conv& conv, ConstView planes, std::int64_t height, std::int64_t width) {
    const Image x{
        .pixels = pool_.take(DType::F32, planes.batch, planes.cols, planes.rows), .height = height, .width = width};
    if (ops_ != nullptr) ops_->transpose(planes, x.view());
    return convolve(conv, x, dtype_);
  }

  void finish(const Network& n, const Image& x, View planes) {
    const Image y = convolve(n.conv_out, normalise(n.norm_out, x, true), DType::F32);
    if (ops_ != nullptr) ops_->transpose(y.view(), planes);
  }

  Image convolve(const Conv& conv, const Image& x, DType dtype, Resample resample = Resample::kNone,
                 ConstView residual = {}) {
    Image y{.height = x.height, .width = x.width};
    Convolution c{.x = x.view(), .height = x.height, .width = x.width, .kernel = conv.kernel, .residual = residual};
    c.before = c.after = conv.kernel / 2;
    if (resample == Resample::kHalf) {
      c.stride = 2;
      c.before = 0;
      y.height /= 2;
      y.width /= 2;
    } else if (resample == Resample::kDouble) {
      c.upsample = 2;
      y.height *= 2;
      y.width *= 2;
    }
    y.pixels = pool_.take(dtype, x.view().batch, y.height * y.width, conv.out);
    if (ops_ != nullptr) {
      c.weight = conv.weight;
      c.bias = conv.bias;
      c.y = y.view();
      ops_->convolution(c);
    }
    return y;
  }

  Image convolve(const Conv& conv, const Image& x, Resample resample = Resample::kNone, ConstView residual = {}) {
    return convolve(conv, x, dtype_, resample, residual);
  }

  Image normalise(const Norm& norm, const Image& x, bool silu) {
    Image y = like(x);
    if (ops_ != nullptr) {
      ops_->group_norm(
          {.x = x.view(), .groups = shape_.groups, .gain = norm.gain, .bias = norm.bias, .silu = silu, .y = y.view()});
    }
    return y;
  }

  Image like(const Image& x) {
    return {.pixels = pool_.take(dtype_, x.view().batch, x.view().rows, x.view().cols),
            .height = x.height,
            .width = x.width};
  }

  Image run_resnet(const Resnet& r, Image x) {
    Image h = normalise(r.norm1, x, true);
    h = convolve(r.conv1, h);
    h = normalise(r.norm2, h, true);
    for (const Conv& shortcut : r.shortcut) x = convolve(shortcut, x);
    return convolve(r.conv2, h, Resample::kNone, x.view());
  }

  Image run_level(const Level& level, Image x, Resample resample) {
    for (const Resnet& block : level.blocks) x = run_resnet(block, std::move(x));
    for (const Conv& conv : level.resample) x = convolve(conv, x, resample);
    return x;
  }

  Image attend(const Attention& a, const Image& x) {
    const Image n = normalise(a.norm, x, false);
    const Image q = convolve(a.q, n);
    const Image k = convolve(a.k, n);
    const Image v = convolve(a.v, n);
    const Image o = like(x);
    if (ops_ != nullptr) {
      ops_->attention({.q = q.view(),
                       .k = k.view(),
                       .v = v.view(),
                       .scale = 1.0F / std::sqrt(static_cast<float>(x.view().cols)),
                       .o = o.view()});
    }
    return convolve(a.proj_out, o, Resample::kNone, x.view());
  }

  Image middle(const Network& n, Image x) {
    x = run_resnet(n.mid_1, std::move(x));
    x = attend(n.attention, x);
    return run_resnet(n.mid_2, std::move(x));
  }

  Ops* ops_;
  DType dtype_;  // of activations
  Pool& pool_;
  const VaeShape& shape_;
};

void check(const VaeShape& shape, std::int64_t height, std::int64_t width) {
  if (height < 1 || width < 1 || height % shape.factor() != 0 || width % shape.factor() != 0) {
    throw std::logic_error("image sides are not multiples of " + std::to_string(shape.factor()));
  }
}

}  // namespace

Network make_encoder(const VaeShape& shape) {
  Network n;
  n.conv_in = make_conv("encoder.conv_in", shape.width, kPixelChannels);
  std::int64_t channels = shape.width;
  for (std::size_t l = 0; l < shape.multipliers.size(); ++l) {
    const std::int64_t out = shape.width * shape.multipliers[l];
    const bool last = l + 1 == shape.multipliers.size();
    n.levels.push_back(
        make_level("encoder.down." + std::to_string(l), shape.resnets, out, channels, last ? "" : ".downsample.conv"));
    channels = out;
  }
  make_middle(n, "encoder.mid", channels);
  n.norm_out = make_norm("encoder.norm_out", channels);
  n.conv_out = make_conv("encoder.conv_out", 2 * shape.latent_channels, channels);
  return n;
}

Network make_decoder(const VaeShape& shape) {
  Network n;
  std::int64_t channels = shape.width * shape.multipliers.back();
  n.conv_in = make_conv("decoder.conv_in", channels, shape.latent_channels);
  make_middle(n, "decoder.mid", channels);
  for (std::size_t l = shape.multipliers.size(); l-- > 0;) {
    const std::int64_t out = shape.width * shape.multipliers[l];
    n.levels.push_back(make_level("decoder.up." + std::to_string(l), shape.resnets + 1, out, channels,
                                  l == 0 ? "" : ".upsample.conv"));
    channels = out;
  }
  n.norm_out = make_norm("decoder.norm_out", channels);
  n.conv_out = make_conv("decoder.conv_out", kPixelChannels, channels);
  return n;
}

void weights(WeightVisitor& visitor, Network& n) {
  visit(visitor, n.conv_in);
  for (Level& level : n.levels) {
    for (Resnet& block : level.blocks) visit(visitor, block);
    for (Conv& conv : level.resample) visit(visitor, conv);
  }
  visit(visitor, n.mid_1);
  visit(visitor, n.attention.norm);
  for (Conv* conv : {&n.attention.q, &n.attention.k, &n.attention.v, &n.attention.proj_out}) visit(visitor, *conv);
  visit(visitor, n.mid_2);
  visit(visitor, n.norm_out);
  visit(visitor, n.conv_out);
}

std::size_t encode_workspace(const VaeShape& shape, DType activation, std::int64_t batch, std::int64_t height,
                             std::int64_t width) {
  check(shape, height, width);
  Pool pool;
  const ConstView image(nullptr, DType::F32, batch, kPixelChannels, height * width);
  Pass(nullptr, activation, pool, shape).encode(make_encoder(shape), image, height, width, {});
  return pool.peak();
}

std::size_t decode_workspace(const VaeShape& shape, DType activation, std::int64_t batch, std::int64_t height,
                             std::int64_t width) {
  check(shape, height, width);
  Pool pool;
  const std::int64_t h = height / shape.factor();
  const std::int64_t w = width / shape.factor();
  const ConstView z(nullptr, DType::F32, batch, shape.latent_channels, h * w);
  Pass(nullptr, activation, pool, shape).decode(make_decoder(shape), z, h, w, {});
  return pool.peak();
}

void encode(Ops& ops, const VaeShape& shape, const Network& encoder, ConstView image, std::int64_t height,
            std::int64_t width, View workspace, View moments) {
  check(shape, height, width);
  Pool pool(workspace);
  Pass(&ops, ops.activation_type(), pool, shape).encode(encoder, image, height, width, moments);
}

void decode(Ops& ops, const VaeShape& shape, const Network& decoder, ConstView z, std::int64_t height,
            std::int64_t width, View workspace, View image) {
  check(shape, height, width);
  Pool pool(workspace);
  Pass(&ops, ops.activation_type(), pool, shape)
      .decode(decoder, z, height / shape.factor(), width / shape.factor(), image);
}

}  // namespace squareq::vae
