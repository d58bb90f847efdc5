#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"

namespace squareq {
namespace {

constexpr std::int64_t kPixelBlock = 256;
constexpr std::int64_t kDepth = 768;  // about how many columns of the patch matrix are made at a time

struct Geometry {
  explicit Geometry(const Convolution& p)
      : kernel(p.kernel),
        stride(p.stride),
        before(p.before),
        upsample(p.upsample),
        height(p.height),
        width(p.width),
        out_height((p.upsample * p.height + p.before + p.after - p.kernel) / p.stride + 1),
        out_width((p.upsample * p.width + p.before + p.after - p.kernel) / p.stride + 1) {}

  bool pointwise() const { return kernel == 1 && stride == 1 && before == 0 && upsample == 1 && out_height == height; }

  // The pixel that tap `tap` sees at output pixel `i`, or -1 outside the image.
  std::int64_t source(std::int64_t i, std::int64_t tap) const {
    const std::int64_t y = i / out_width * stride + tap / kernel - before;
    const std::int64_t x = i % out_width * stride + tap % kernel - before;
    if (y < 0 || x < 0 || y >= upsample * height || x >= upsample * width) return -1;
    return y / upsample * width + x / upsample;
  }

  std::int64_t kernel, stride, before, upsample, height, width, out_height, out_width;
};

// Rows of the patch matrix: what taps [tap, tap + taps) see at output pixels [begin, begin + n).
void patches_of(const Geometry& g, const ConstView& x, std::int64_t b, std::int64_t tap, std::int64_t taps,
                std::int64_t begin, std::int64_t n, float* to) {
  for (std::int64_t i = begin; i < begin + n; ++i) {
    for (std::int64_t t = tap; t < tap + taps; ++t, to += x.cols) {
      const std::int64_t pixel = g.source(i, t);
      if (pixel < 0) {
        std::fill_n(to, x.cols, 0.0F);
      } else {
        std::copy_n(x.f32(b, pixel), x.cols, to);
      }
    }
  }
}

// [out, in, taps] to [out, taps, in].
void reorder(ConstMatrix weight, std::int64_t out, std::int64_t in, std::int64_t taps, float* to) {
  for (std::int64_t o = 0; o < out; ++o) {
    for (std::int64_t t = 0; t < taps; ++t) {
      for (std::int64_t c = 0; c < in; ++c) *to++ = weight.row(o)[c * taps + t];
    }
  }
}

void check(const Convolution& p, const Geometry& g) {
  const std::int64_t out = p.weight.rows;
  require(p.kernel > 0 && p.stride > 0 && p.upsample > 0 && p.before >= 0 && p.after >= 0, "convolution: parameters");
  require(p.x.rows == p.height * p.width && p.weight.cols == p.x.cols * p.kernel * p.kernel && p.bias.count() == out,
          "convolution: weight or bias does not fit");
  require(g.out_height > 0 && g.out_width > 0 && p.y.batch == p.x.batch && p.y.cols == out &&
              p.y.rows == g.out_height * g.out_width,
          "convolution: output does not fit");
  require(!p.residual || same_shape(p.residual, p.y), "convolution: residual does not fit");
}

}  // namespace

void CpuOps::convolution(const Convolution& p) {
  require(p.stride > 0, "convolution: parameters");
  const Geometry g(p);
  check(p, g);
  const std::int64_t taps = p.kernel * p.kernel;
  const std::int64_t in = p.x.cols;
  const std::int64_t out = p.y.cols;
  const std::int64_t tap_step = std::clamp<std::int64_t>(kDepth / std::max<std::int64_t>(in, 1), 1, taps);
  const float* bias = as_floats(p.bias, bias_);
  const float* raw_weight = as_floats(p.weight, gain_);
  const std::int64_t raw_stride = p.weight.dtype == DType::F32 ? p.weight.row_stride : p.weight.cols;
  float* weight = x_.at_least(out * taps * in);
  reorder({raw_weight, raw_stride}, out, in, taps, weight);
  const std::int64_t blocks = ceil_div(p.y.rows, kPixelBlock);
  pool_.parallel_for(p.x.batch * blocks, [&](std::int64_t task, int worker_index) {
    const std::int64_t b = task / blocks;
    const std::int64_t begin = task % blocks * kPixelBlock;
    const std::int64_t n = std::min(kPixelBlock, p.y.rows - begin);
    for (std::int64_t i = begin; i < begin + n; ++i) {
      float* y = p.y.f32(b, i);
      const float* residual = p.residual ? p.residual.f32(b, i) : nullptr;
      for (std::int64_t o = 0; o < out; ++o) y[o] = bias[o] + (residual != nullptr ? residual[o] : 0.0F);
    }
    for (std::int64_t tap = 0; tap < taps; tap += tap_step) {
      const std::int64_t depth = std::min(tap_step, taps - tap) * in;
      float* patches = nullptr;
      if (!g.pointwise()) {
        patches = worker(worker_index).tile.at_least(n * depth);
        patches_of(g, p.x, b, tap, depth / in, begin, n, patches);
      }
      gemm({.transpose_b = Transpose::kYes,
            .m = n,
            .n = out,
            .k = depth,
            .a = g.pointwise() ? p.x.f32(b, begin) : patches,
            .lda = g.pointwise() ? p.x.row_stride : depth,
            .b = weight + tap * in,
            .ldb = taps * in,
            .beta = 1.0F,
            .c = p.y.f32(b, begin),
            .ldc = p.y.row_stride});
    }
  });
}

}  // namespace squareq
