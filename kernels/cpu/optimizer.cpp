#include <cmath>

#include "kernels/adam_factors.h"
#include "kernels/base/random.h"
#include "kernels/cpu/cpu_ops.h"

namespace squareq {
namespace {

// Factors by value and pointers that promise not to overlap: else every store could change what is read next, and the
// loop would not vectorise.
void adamw_piece(const AdamFactors f, std::int64_t n, const float* __restrict gradient, float* __restrict w,
                 float* __restrict mean, float* __restrict variance) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = gradient[i] * f.gradient_scale;
    mean[i] = f.beta1 * mean[i] + (1.0F - f.beta1) * g;
    variance[i] = f.beta2 * variance[i] + (1.0F - f.beta2) * g * g;
    const float denominator = std::sqrt(variance[i] / f.correction2) + f.epsilon;
    w[i] = f.keep * w[i] - f.rate * (mean[i] / f.correction1) / denominator;
  }
}

// The code of a magnitude x in [0, 1] of a scale with codes 0..top: one of its two neighbours, see AdamW.
int code_of(float x, float top, std::uint32_t dither) {
  const float y = x * top * top;
  const float low = std::min(std::floor(std::sqrt(y)), top - 1.0F);
  const float threshold = (static_cast<float>(dither) + 0.5F) * 0x1p-16F;
  return static_cast<int>(low) + (threshold * (2.0F * low + 1.0F) < y - low * low ? 1 : 0);
}

float value_of(int code, float top) {
  const float x = static_cast<float>(code) / top;
  return x * std::fabs(x);
}

struct MomentBlock {
  std::int64_t first = 0;  // index of its first value
  std::int64_t n = 0;
  std::int8_t* mean = nullptr;
  std::uint8_t* root = nullptr;
  float* mean_scale = nullptr;
  float* root_scale = nullptr;
};

void adamw_block(const AdamFactors& f, std::uint32_t step, const MomentBlock& block, const float* gradient, float* w) {
  float mean[kMomentBlock], variance[kMomentBlock];
  for (std::int64_t i = 0; i < block.n; ++i) {
    const float root = *block.root_scale * value_of(block.root[i], 255.0F);
    mean[i] = *block.mean_scale * value_of(block.mean[i], 127.0F);
    variance[i] = root * root;
  }
  adamw_piece(f, block.n, gradient, w, mean, variance);
  float mean_scale = 0.0F;
  float root_scale = 0.0F;
  for (std::int64_t i = 0; i < block.n; ++i) {
    variance[i] = std::sqrt(variance[i]);
    mean_scale = std::max(mean_scale, std::fabs(mean[i]));
    root_scale = std::max(root_scale, variance[i]);
  }
  *block.mean_scale = mean_scale;
  *block.root_scale = root_scale;
  for (std::int64_t i = 0; i < block.n; ++i) {
    const std::uint32_t dither = hash32(static_cast<std::uint32_t>(block.first + i), step);
    const int m = mean_scale > 0.0F ? code_of(std::fabs(mean[i]) / mean_scale, 127.0F, dither & 0xFFFFU) : 0;
    const int r = root_scale > 0.0F ? code_of(variance[i] / root_scale, 255.0F, dither >> 16U) : 0;
    block.mean[i] = static_cast<std::int8_t>(mean[i] < 0.0F ? -m : m);
    block.root[i] = static_cast<std::uint8_t>(r == 0 && variance[i] > 0.0F ? 1 : r);
  }
}

}  // namespace

void CpuOps::adamw(const AdamW& p) {
  require(same_shape(p.parameters, p.gradients) && same_shape(p.parameters, p.mean) &&
              same_shape(p.parameters, p.variance) && p.step >= 1,
          "adamw: shapes or step");
  if (p.mean.dtype != DType::F32) return adamw_codes(p);
  const AdamFactors factors(p);
  for_pieces(p.parameters.batch, p.parameters.rows, p.parameters.cols,
             [&](std::int64_t b, std::int64_t t, std::int64_t begin, std::int64_t n) {
               adamw_piece(factors, n, p.gradients.f32(b, t) + begin, p.parameters.f32(b, t) + begin,
                           p.mean.f32(b, t) + begin, p.variance.f32(b, t) + begin);
             });
}

void CpuOps::adamw_codes(const AdamW& p) {
  const std::int64_t count = p.parameters.count();
  const std::int64_t blocks = ceil_div(count, kMomentBlock);
  require(p.parameters.cols == count && p.mean.dtype == DType::I8 && p.variance.dtype == DType::U8 &&
              p.mean_scale.cols == blocks && p.variance_scale.cols == blocks,
          "adamw: codes or their scales do not fit");
  const AdamFactors factors(p);
  constexpr std::int64_t kBlocks = 64;  // of a task
  pool_.parallel_for(ceil_div(blocks, kBlocks), [&](std::int64_t task, int) {
    for (std::int64_t block = task * kBlocks; block < std::min((task + 1) * kBlocks, blocks); ++block) {
      const std::int64_t first = block * kMomentBlock;
      adamw_block(factors, static_cast<std::uint32_t>(p.step),
                  {.first = first,
                   .n = std::min(kMomentBlock, count - first),
                   .mean = reinterpret_cast<std::int8_t*>(p.mean.data) + first,
                   .root = reinterpret_cast<std::uint8_t*>(p.variance.data) + first,
                   .mean_scale = p.mean_scale.f32() + block,
                   .root_scale = p.variance_scale.f32() + block},
                  p.gradients.f32() + first, p.parameters.f32() + first);
    }
  });
}

void CpuOps::lerp(ConstView x, float weight, View y) {
  require(same_shape(x, y), "lerp: shapes");
  for_pieces(y.batch, y.rows, y.cols, [&](std::int64_t b, std::int64_t t, std::int64_t begin, std::int64_t n) {
    const float* from = x.f32(b, t) + begin;
    float* to = y.f32(b, t) + begin;
    for (std::int64_t i = 0; i < n; ++i) to[i] += weight * (from[i] - to[i]);
  });
}

}  // namespace squareq
