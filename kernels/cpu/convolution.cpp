#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"

namespace squareq {
namespace {

constexpr std::int64_t kPixelBlock = 256;
constexpr std::int64_t kDepth = 768;  // about how many rows of the patch matrix are made at a time

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

  std::int64_t kernel, stride, before, upsample, height, width, out_height, out_width;
};

// One row of the patch matrix: what the tap (ky, kx) sees of `image` at output pixels [begin, begin + n).
void patch_row(const Geometry& g, const float* image, std::int64_t ky, std::int64_t kx, std::int64_t begin,
               std::int64_t n, float* to) {
  for (std::int64_t done = 0; done < n;) {
    const std::int64_t oy = (begin + done) / g.out_width;
    const std::int64_t ox = (begin + done) % g.out_width;
    const std::int64_t count = std::min(g.out_width - ox, n - done);
    const std::int64_t y = oy * g.stride + ky - g.before;
    float* segment = to + done;
    done += count;
    if (y < 0 || y >= g.upsample * g.height) {
      std::fill_n(segment, count, 0.0F);
      continue;
    }
    const float* line = image + y / g.upsample * g.width;
    const std::int64_t first = ox * g.stride + kx - g.before;
    if (g.stride == 1 && g.upsample == 1) {
      const std::int64_t left = std::clamp<std::int64_t>(-first, 0, count);
      const std::int64_t inside = std::clamp<std::int64_t>(g.width - first, left, count);
      std::fill_n(segment, left, 0.0F);
      std::copy(line + first + left, line + first + inside, segment + left);
      std::fill_n(segment + inside, count - inside, 0.0F);
      continue;
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t x = first + i * g.stride;
      segment[i] = x < 0 || x >= g.upsample * g.width ? 0.0F : line[x / g.upsample];
    }
  }
}

void check(const Convolution& p, const Geometry& g) {
  const std::int64_t out = p.weight.rows;
  require(p.kernel > 0 && p.stride > 0 && p.upsample > 0 && p.before >= 0 && p.after >= 0, "convolution: parameters");
  require(p.x.cols == p.height * p.width && p.weight.cols == p.x.rows * p.kernel * p.kernel && p.bias.count() == out,
          "convolution: weight or bias does not fit");
  require(g.out_height > 0 && g.out_width > 0 && p.y.batch == p.x.batch && p.y.rows == out &&
              p.y.cols == g.out_height * g.out_width,
          "convolution: output does not fit");
  require(!p.residual || same_shape(p.residual, p.y), "convolution: residual does not fit");
}

}  // namespace

void CpuOps::convolution(const Convolution& p) {
  require(p.stride > 0, "convolution: parameters");
  const Geometry g(p);
  check(p, g);
  const std::int64_t taps = p.kernel * p.kernel;
  const std::int64_t channel_step = std::max<std::int64_t>(kDepth / taps, 1);
  const float* bias = as_floats(p.bias, bias_);
  const float* weight = as_floats(p.weight, gain_);
  const std::int64_t weight_stride = p.weight.dtype == DType::F32 ? p.weight.row_stride : p.weight.cols;
  const std::int64_t blocks = ceil_div(p.y.cols, kPixelBlock);
  pool_.parallel_for(p.x.batch * blocks, [&](std::int64_t task, int worker_index) {
    const std::int64_t b = task / blocks;
    const std::int64_t begin = task % blocks * kPixelBlock;
    const std::int64_t n = std::min(kPixelBlock, p.y.cols - begin);
    for (std::int64_t o = 0; o < p.y.rows; ++o) {
      float* y = p.y.f32(b, o) + begin;
      const float* residual = p.residual ? p.residual.f32(b, o) + begin : nullptr;
      for (std::int64_t i = 0; i < n; ++i) y[i] = bias[o] + (residual != nullptr ? residual[i] : 0.0F);
    }
    for (std::int64_t c = 0; c < p.x.rows; c += channel_step) {
      const std::int64_t channels = std::min(channel_step, p.x.rows - c);
      const std::int64_t depth = channels * taps;
      float* patches = nullptr;
      if (!g.pointwise()) {
        patches = worker(worker_index).tile.at_least(depth * n);
        for (std::int64_t row = 0; row < depth; ++row) {
          const std::int64_t tap = row % taps;
          patch_row(g, p.x.f32(b, c + row / taps), tap / p.kernel, tap % p.kernel, begin, n, patches + row * n);
        }
      }
      gemm({.m = p.y.rows,
            .n = n,
            .k = depth,
            .a = weight + c * taps,
            .lda = weight_stride,
            .b = g.pointwise() ? p.x.f32(b, c) + begin : patches,
            .ldb = g.pointwise() ? p.x.row_stride : n,
            .beta = 1.0F,
            .c = p.y.f32(b) + begin,
            .ldc = p.y.row_stride});
    }
  });
}

}  // namespace squareq
