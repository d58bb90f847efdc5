// Convolution as a matrix product that is never laid out: y [pixels, out] = patches [pixels, depth] w [out, depth]^T,
// where the depth runs over taps, then channels. Tiles of both operands pass through shared memory in 16-byte runs of 8
// channels; which pixel a run comes from is worked out when it is loaded, and a run outside the image is zeros.
#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/pack.cuh"

namespace squareq::cuda {
namespace {

using Bf16 = __nv_bfloat16;

constexpr int kTile = 128;     // output pixels and output channels of a block
constexpr int kStepRuns = 4;   // runs of the depth that a step multiplies
constexpr int kStages = 3;     // steps in shared memory; 3 of them just fit without asking for more than 48 KiB
constexpr int kWarpRows = 64;  // output pixels of a warp; the kThreads of a block are 2 x 4 warps
constexpr int kWarpCols = 32;  // output channels of a warp
constexpr int kLoadRows = kThreads / kStepRuns;
constexpr int kReciprocalBits = 16;

struct Problem {
  Rows<const Bf16> x;                  // [B, height * width, 8 * runs], aligned to 16 bytes
  const Bf16* weight;                  // [out, depth, 8]
  const float* bias;                   // [out]
  int runs, depth;                     // runs of a pixel, runs of all taps
  int width, wide_height, wide_width;  // wide: of the picture after upsampling
  int out, out_width, pixels;          // pixels: of the output
  int kernel, stride, before;
  unsigned reciprocal;  // 2^16 / upsample, rounded up
};

// The run of the depth that a thread loads next.
struct Depth {
  int run, ky, kx;

  __device__ void advance(const Problem& p, int by) {
    run += by;
    while (run >= p.runs) {
      run -= p.runs;
      if (++kx == p.kernel) {
        kx = 0;
        ++ky;
      }
    }
  }
};

struct Pixel {
  int y, x;  // of the first tap

  __device__ Pixel(const Problem& p, int index)
      : y(index / p.out_width * p.stride - p.before), x(index % p.out_width * p.stride - p.before) {
    if (index >= p.pixels) y = p.wide_height;  // outside for every tap
  }
  // Where the tap's run of channels lies in the sample, or null outside the image.
  __device__ const Bf16* source(const Problem& p, const Depth& d, const Bf16* sample) const {
    const auto row = static_cast<unsigned>(y + d.ky);
    const auto col = static_cast<unsigned>(x + d.kx);
    if (d.ky >= p.kernel || row >= static_cast<unsigned>(p.wide_height) || col >= static_cast<unsigned>(p.wide_width))
      return nullptr;
    const unsigned pixel = (row * p.reciprocal >> kReciprocalBits) * static_cast<unsigned>(p.width) +
                           (col * p.reciprocal >> kReciprocalBits);
    return sample + static_cast<std::int64_t>(pixel) * p.x.row_stride + d.run * kWide;
  }
};

// Runs of 16 bytes of kTile rows. Runs are permuted within a row, so that 8 rows that one ldmatrix reads at the same
// logical run lie in different banks: 8 consecutive rows of patches, rows 8 i + {0, 1} of weights.
struct Stage {
  uint4 patches[kTile * kStepRuns];
  uint4 weights[kTile * kStepRuns];
};
__device__ int patch_at(int row, int run) { return row * kStepRuns + (run ^ (row >> 1 & 3)); }
__device__ int weight_at(int row, int run) { return row * kStepRuns + (run ^ (row >> 3 & 3)); }

__device__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// 16 bytes from global memory, or zeros where there is no source.
__device__ void copy_run(const Bf16* from, const Bf16* anywhere, uint4* to) {
  const int bytes = from != nullptr ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
               "l"(from != nullptr ? from : anywhere), "r"(bytes));
}
__device__ void end_copies() { asm volatile("cp.async.commit_group;"); }
template <int kPending>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ void load_matrices(const uint4* row, unsigned (&to)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row)));
}
__device__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

constexpr int kRowTiles = kWarpRows / 16;
constexpr int kColTiles = kWarpCols / 8;
using Sums = float[kRowTiles][kColTiles][4];

// Column v of product tile t is output channel 8 (v / 2) + 2 t + v % 2 of the warp: so a thread ends up with a run
// of 8.
__device__ void multiply(const Stage& stage, int warp_row, int warp_col, int lane, Sums& sums) {
  const int column = (lane % 8 / 2) * 8 + lane % 2 + (lane / 16) * 2;
  for (int half = 0; half < 2; ++half) {
    unsigned a[kRowTiles][4], b[kColTiles / 2][4];
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i)
      load_matrices(&stage.patches[patch_at(warp_row + 16 * i + lane % 16, 2 * half + lane / 16)], a[i]);
#pragma unroll
    for (int j = 0; j < kColTiles / 2; ++j)
      load_matrices(&stage.weights[weight_at(warp_col + column + 4 * j, 2 * half + lane / 8 % 2)], b[j]);
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kColTiles; ++j) multiply_add(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
}

// y = sums + bias + residual for N channels of one pixel.
template <int N, class T>
__device__ void finish(const Problem& p, const float (&sums)[N], int channel, const T* residual, T* y) {
  if (channel >= p.out) return;
  float values[N];
  for (int i = 0; i < N; ++i) values[i] = sums[i] + p.bias[channel + i];
  if (residual != nullptr) {
    float more[N];
    load<N>(residual + channel, more);
    for (int i = 0; i < N; ++i) values[i] += more[i];
  }
  store<N>(y + channel, values);
}

template <class T, bool kRuns>
__device__ void write(const Problem& p, const Sums& sums, int first_pixel, int channel, Rows<const T> residual,
                      Rows<T> y) {
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
    const int pixel = first_pixel + 8 * i;
    if (pixel >= p.pixels) return;
    const T* add = residual.data != nullptr ? residual(blockIdx.y, pixel) : nullptr;
    float values[kWide];
#pragma unroll
    for (int c = 0; c < kWide; ++c) values[c] = sums[i / 2][c / 2][i % 2 * 2 + c % 2];
    if constexpr (kRuns) {
      finish(p, values, channel, add, y(blockIdx.y, pixel));
    } else {
#pragma unroll
      for (int c = 0; c < kWide; ++c) finish(p, {values[c]}, channel + c, add, y(blockIdx.y, pixel));
    }
  }
}

template <class T, bool kRuns>
__global__ void __launch_bounds__(kThreads, 2) convolve(Problem p, Rows<const T> residual, Rows<T> y) {
  __shared__ Stage stages[kStages];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  // Blocks of the same pixels follow each other and find them in the second-level cache.
  const int blocks_across = (p.out + kTile - 1) / kTile;
  const int first_pixel = static_cast<int>(blockIdx.x) / blocks_across * kTile;
  const int first_channel = static_cast<int>(blockIdx.x) % blocks_across * kTile;

  const int load_row = thread / kStepRuns;
  const int run_of_thread = thread % kStepRuns;
  const Bf16* sample = p.x(blockIdx.y, 0);
  const Pixel pixels[] = {{p, first_pixel + load_row}, {p, first_pixel + load_row + kLoadRows}};
  Depth depth{};
  depth.advance(p, run_of_thread);
  int at = run_of_thread;
  const auto load = [&](Stage& stage) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = load_row + i * kLoadRows;
      copy_run(pixels[i].source(p, depth, sample), sample, &stage.patches[patch_at(row, run_of_thread)]);
      const int channel = first_channel + row;
      const Bf16* w = p.weight + (static_cast<std::int64_t>(channel) * p.depth + at) * kWide;
      copy_run(channel < p.out && at < p.depth ? w : nullptr, p.weight, &stage.weights[weight_at(row, run_of_thread)]);
    }
    end_copies();
    depth.advance(p, kStepRuns);
    at += kStepRuns;
  };

  const int warp_row = thread / 128 * kWarpRows;
  const int warp_col = thread / 32 % 4 * kWarpCols;
  Sums sums = {};
  const int steps = (p.depth + kStepRuns - 1) / kStepRuns;
  for (int s = 0; s < kStages - 1; ++s) load(stages[s]);
  for (int step = 0, stage = 0; step < steps; ++step) {
    wait_copies<kStages - 2>();
    __syncthreads();  // the stage has arrived, and everybody is done with the one that is loaded next
    load(stages[stage == 0 ? kStages - 1 : stage - 1]);
    multiply(stages[stage], warp_row, warp_col, lane, sums);
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  wait_copies<0>();
  write<T, kRuns>(p, sums, first_pixel + warp_row + lane / 4, first_channel + warp_col + lane % 4 * kWide, residual, y);
}

// Weights [out, in, taps] to [out, taps, 8 * runs], filled up with zeros, and the bias to float32.
__global__ void pack_weights(AnyRows<const std::byte> weight, AnyRows<const std::byte> bias, int in, int taps,
                             int padded, int out, Bf16* packed, float* packed_bias) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < out) packed_bias[i] = bias.value(0, 0, i);
  if (i >= out * taps * padded) return;
  const int channel = i % padded;
  const int tap = i / padded % taps;
  const int row = i / padded / taps;
  packed[i] = from_float<Bf16>(channel < in ? weight.value(0, row, channel * taps + tap) : 0.0F);
}

// Pixels to bfloat16, filled up to whole runs of channels.
template <class T>
__global__ void pack_pixels(Rows<const T> x, int in, int padded, std::int64_t count, Bf16* packed) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count * padded) return;
  const auto channel = static_cast<int>(i % padded);
  const std::int64_t pixel = i / padded;
  const float value = channel < in ? to_float(x(blockIdx.y, pixel)[channel]) : 0.0F;
  packed[blockIdx.y * count * padded + i] = from_float<Bf16>(value);
}

void check(const Convolution& p, std::int64_t out_height, std::int64_t out_width) {
  const std::int64_t out = p.weight.rows;
  require(p.kernel > 0 && p.upsample > 0 && p.before >= 0 && p.after >= 0, "convolution: parameters");
  require(p.x.rows == p.height * p.width && p.weight.cols == p.x.cols * p.kernel * p.kernel && p.bias.count() == out,
          "convolution: weight or bias does not fit");
  require(out_height > 0 && out_width > 0 && p.y.batch == p.x.batch && p.y.cols == out &&
              p.y.rows == out_height * out_width,
          "convolution: output does not fit");
  require(!p.residual || (same_shape(p.residual, p.y) && p.residual.dtype == p.y.dtype),
          "convolution: residual does not fit");
  // Where division by multiplication is exact and products fit 32 bits.
  const std::int64_t longest = std::max(p.height, p.width) * p.upsample;
  require(longest < 32768 && longest * p.upsample < 65536, "convolution: image is too large");
}

template <class T>
void launch(const Problem& problem, const Convolution& p, cudaStream_t stream) {
  const bool runs = wide({p.y, p.residual});
  const auto kernel = runs ? convolve<T, true> : convolve<T, false>;
  const dim3 grid(ceil_div(problem.pixels, kTile) * ceil_div(problem.out, kTile), static_cast<unsigned>(p.x.batch));
  kernel<<<grid, kThreads, 0, stream>>>(problem, rows_of<T>(p.residual), rows_of<T>(p.y));
  check_launch("convolve");
}

}  // namespace

void CudaOps::convolution(const Convolution& p) {
  require(p.stride > 0, "convolution: parameters");
  const std::int64_t out_height = (p.upsample * p.height + p.before + p.after - p.kernel) / p.stride + 1;
  const std::int64_t out_width = (p.upsample * p.width + p.before + p.after - p.kernel) / p.stride + 1;
  check(p, out_height, out_width);
  const std::int64_t in = p.x.cols, out = p.y.cols, taps = p.kernel * p.kernel;
  const std::int64_t padded = (in + kWide - 1) / kWide * kWide;
  Scratch scratch(*this);
  const View weight = scratch.take(DType::BF16, 1, out, taps * padded);
  const View bias = scratch.take(DType::F32, 1, 1, out);
  const bool in_place = p.x.dtype == DType::BF16 && wide({p.x});
  const ConstView x = in_place ? p.x : ConstView(scratch.take(DType::BF16, p.x.batch, p.x.rows, padded));
  if (scratch.rehearsing()) return;

  auto* packed_weight = reinterpret_cast<Bf16*>(weight.data);
  auto* packed_bias = reinterpret_cast<float*>(bias.data);
  pack_weights<<<ceil_div(std::max(weight.count(), out), kThreads), kThreads, 0, stream_>>>(
      any_rows(p.weight), any_rows(p.bias), static_cast<int>(in), static_cast<int>(taps), static_cast<int>(padded),
      static_cast<int>(out), packed_weight, packed_bias);
  check_launch("pack_weights");
  if (!in_place) {
    with_type(p.x.dtype, [&]<class T>() {
      const dim3 grid(ceil_div(x.rows * padded, kThreads), static_cast<unsigned>(x.batch));
      pack_pixels<<<grid, kThreads, 0, stream_>>>(rows_of<T>(p.x), static_cast<int>(in), static_cast<int>(padded),
                                                  x.rows, reinterpret_cast<Bf16*>(const_cast<std::byte*>(x.data)));
      check_launch("pack_pixels");
    });
  }
  const Problem problem{.x = rows_of<Bf16>(x),
                        .weight = packed_weight,
                        .bias = packed_bias,
                        .runs = static_cast<int>(padded / kWide),
                        .depth = static_cast<int>(taps * padded / kWide),
                        .width = static_cast<int>(p.width),
                        .wide_height = static_cast<int>(p.upsample * p.height),
                        .wide_width = static_cast<int>(p.upsample * p.width),
                        .out = static_cast<int>(out),
                        .out_width = static_cast<int>(out_width),
                        .pixels = static_cast<int>(out_height * out_width),
                        .kernel = static_cast<int>(p.kernel),
                        .stride = static_cast<int>(p.stride),
                        .before = static_cast<int>(p.before),
                        .reciprocal = static_cast<unsigned>((65536 + p.upsample - 1) / p.upsample)};
  with_type(p.y.dtype, [&]<class T>() { launch<T>(problem, p, stream_); });
}

}  // namespace squareq::cuda
