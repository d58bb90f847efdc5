// The convolutional autoencoder of FLUX.1: pixels to the moments of a latent, and a latent to pixels. Names and
// architecture as in Black Forest Labs' flux/modules/autoencoder.py. Inside, images are
// [B, height * width, channels].
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/shapes.h"
#include "model/stage.h"

namespace squareq::vae {

struct Conv {
  std::string name;
  std::int64_t out = 0;
  std::int64_t in = 0;
  std::int64_t kernel = 3;
  ConstView weight;  // [1, out, in * kernel * kernel]
  ConstView bias;    // [1, 1, out]
};

struct Norm {
  std::string name;
  std::int64_t channels = 0;
  ConstView gain, bias;  // [1, 1, channels]
};

struct Resnet {
  Norm norm1, norm2;
  Conv conv1, conv2;
  std::vector<Conv> shortcut;  // one where the channels change, else none
};

struct Attention {
  Norm norm;
  Conv q, k, v, proj_out;
};

struct Level {
  std::vector<Resnet> blocks;
  std::vector<Conv> resample;  // to half or twice the size after the blocks; none at the last level
};

// Encoder or decoder; levels in the order of execution, the middle after them or before them.
struct Network {
  Conv conv_in;
  std::vector<Level> levels;
  Resnet mid_1;
  Attention attention;
  Resnet mid_2;
  Norm norm_out;
  Conv conv_out;
};

// Names and sizes, nothing bound yet.
Network make_encoder(const VaeShape& shape);
Network make_decoder(const VaeShape& shape);

void weights(WeightVisitor& visitor, Network& network);

// Bytes of workspace for a batch of images of this size in pixels; `activation`: Ops::activation_type().
std::size_t encode_workspace(const VaeShape& shape, DType activation, std::int64_t batch, std::int64_t height,
                             std::int64_t width);
std::size_t decode_workspace(const VaeShape& shape, DType activation, std::int64_t batch, std::int64_t height,
                             std::int64_t width);

// image [B, 3, height * width] F32 with values in [-1, 1] to moments [B, 2 z, n] F32, n latent pixels: means, then
// logarithms of variances, not normalised (see model/latent.h). height and width are multiples of shape.factor().
void encode(Ops& ops, const VaeShape& shape, const Network& encoder, ConstView image, std::int64_t height,
            std::int64_t width, View workspace, View moments);

// z [B, z, n] F32, not normalised, to image [B, 3, height * width], about [-1, 1] and not clamped.
void decode(Ops& ops, const VaeShape& shape, const Network& decoder, ConstView z, std::int64_t height,
            std::int64_t width, View workspace, View image);

}  // namespace squareq::vae
