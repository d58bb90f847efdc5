// The kernel of fused_gemm_sm90.cu. Persistent blocks walk over output tiles. In each, one warp fetches operands by TMA
// into a ring of stages, and warpgroups of consumers, 64 rows each, multiply and finish them. Consumers are not held in
// step: while one finishes its tile, the others keep the tensor cores busy. Two blocks form a cluster of tiles one
// below the other; each fetches half of their common right operand for both.
#pragma once

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/fused_gemm_sm90_output.cuh"

namespace squareq::cuda::sm90 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Half of a right operand, to both blocks of the cluster.
template <class T>
__device__ void load_right(const CUtensorMap& map, bool mn_major, int k, int column, std::uint32_t to,
                           std::uint32_t barrier, std::uint32_t block) {
  constexpr std::uint16_t kBoth = 3;
  const int half = static_cast<int>(block);
  if (!mn_major) {
    load_box_to_cluster(to + half * (T::kRightBytes / 2), map, k, column + half * (T::kCols / 2), barrier, kBoth);
    return;
  }
  constexpr int kPanelBytes = kRowElements * 128;
#pragma unroll
  for (int panel = 0; panel < T::kCols / kRowElements; ++panel) {
    load_box_to_cluster(to + panel * kPanelBytes + half * (kPanelBytes / 2), map, column + panel * kRowElements,
                        k + half * (kRowElements / 2), barrier, kBoth);
  }
}

template <class T, Operands kOperands>
__device__ void produce(const Arguments& p, Memory<T> memory) {
  constexpr int kStep = kOperands == Operands::kInt8 ? 128 : kRowElements;
  const std::uint32_t block = block_in_cluster();
  const int steps = p.k_steps + p.rank_steps();
  Ring<T> ring;
  wait_for_kernels_before();
  for (int i = static_cast<int>(blockIdx.x) / kCluster; i < p.schedule.count(); i += gridDim.x / kCluster) {
    int pair, column;
    p.schedule.place(i, pair, column);
    const int row = (pair * kCluster + static_cast<int>(block)) * T::kRows;
    for (int step = 0; step < steps; ++step, ring.advance()) {
      const std::uint32_t full = memory.full(ring.stage);
      wait_barrier(memory.empty(ring.stage), ring.parity ^ 1);
      arrive_expecting(full, T::kStageBytes);
      if (step < p.k_steps) {
        load_box(memory.left(ring.stage), p.a, step * kStep, row, full);
        load_right<T>(p.b, kOperands == Operands::kBf16RightMnMajor, step * kStep, column * T::kCols,
                      memory.right(ring.stage), full, block);
      } else {
        const int r = (step - p.k_steps) * kRowElements;
        load_box(memory.left(ring.stage), p.u, r, row, full);
        load_right<T>(p.v, p.v_mn_major, r, column * T::kCols, memory.right(ring.stage), full, block);
      }
    }
  }
}

// The stage may be overwritten, by both blocks of the cluster.
template <class T>
__device__ void release(Memory<T> memory, int stage) {
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  if (thread < kCluster) arrive_remote(memory.empty(stage), thread);
}

template <class T>
__device__ void finish_multiplies(Sums<T::kCols>& d) {
  wait_multiplies<0>();
#pragma unroll
  for (int i = 0; i < T::kCols / 2; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

// A stage of BF16 operands, up to 64 steps of K.
template <class T, bool kMnMajor, bool kCommitEach>
__device__ void multiply_stage(Sums<T::kCols>& d, std::uint32_t left, std::uint32_t right, int steps, bool add) {
#pragma unroll
  for (int i = 0; i < kRowElements / 16; ++i) {
    if (i >= steps) break;
    fence_registers();
    const std::uint64_t b =
        kMnMajor ? mn_major(right + i * 16 * kRowBytes, kRowElements * kRowBytes) : k_major(right + i * 32);
    multiply_bf16<T::kCols, kMnMajor>(d, k_major(left + i * 32), b, add || i > 0);
    if (kCommitEach) commit_multiplies();
  }
}

// d = the tile's rows of a op(b), as int32 or float32.
template <class T, Operands kOperands>
__device__ void multiply_all(Sums<T::kCols>& d, const Arguments& p, Memory<T> memory, Ring<T>& ring, int group) {
  int previous = 0;
  for (int step = 0; step < p.k_steps; ++step, ring.advance()) {
    wait_barrier(memory.full(ring.stage), ring.parity);
    const std::uint32_t left = memory.left(ring.stage) + group * 64 * kRowBytes, right = memory.right(ring.stage);
    if constexpr (kOperands == Operands::kInt8) {
      fence_registers();
#pragma unroll
      for (int i = 0; i < 4; ++i)
        multiply_s8<T::kCols>(d, k_major(left + i * 32), k_major(right + i * 32), step > 0 || i > 0);
    } else {
      multiply_stage<T, kOperands == Operands::kBf16RightMnMajor, false>(d, left, right, 4, step > 0);
    }
    commit_multiplies();
    wait_multiplies<1>();
    if (step > 0) release(memory, previous);
    previous = ring.stage;
  }
  finish_multiplies<T>(d);
  release(memory, previous);
}

// d += u op(v).
template <class T>
__device__ void add_low_rank(Sums<T::kCols>& d, const Arguments& p, Memory<T> memory, Ring<T>& ring, int group) {
  for (int r = 0; r < p.rank; r += kRowElements, ring.advance()) {
    wait_barrier(memory.full(ring.stage), ring.parity);
    const std::uint32_t left = memory.left(ring.stage) + group * 64 * kRowBytes, right = memory.right(ring.stage);
    const int steps = (p.rank - r + 15) / 16;
    if (p.v_mn_major) {
      multiply_stage<T, true, true>(d, left, right, steps, true);
    } else {
      multiply_stage<T, false, true>(d, left, right, steps, true);
    }
    finish_multiplies<T>(d);
    release(memory, ring.stage);
  }
}

template <class T, Operands kOperands>
__device__ void consume(const Arguments& p, Memory<T> memory) {
  const int warp = uniform(static_cast<int>(threadIdx.x) / 32), group = warp / 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Ring<T> ring;
  Writer<T, WarpRows<T>> writer(p, memory);
  Vector<T> scales, bias;
  wait_for_kernels_before();
  for (int i = static_cast<int>(blockIdx.x) / kCluster; i < p.schedule.count(); i += gridDim.x / kCluster) {
    int pair, column;
    p.schedule.place(i, pair, column);
    const int row = (pair * kCluster + static_cast<int>(block_in_cluster())) * T::kRows + warp * kWarpRows;
    writer.begin(row, column * T::kCols);
    scales.fetch(p.b_scale, DType::F32, 1.0F, column * T::kCols, p.n);
    bias.fetch(p.bias, p.bias_type, 0.0F, column * T::kCols, p.n);
    float row_scales[2] = {1.0F, 1.0F};
    if (p.a_scale != nullptr) {
      for (int half = 0; half < 2; ++half) row_scales[half] = p.a_scale[min(row + lane / 4 + 8 * half, p.m - 1)];
    }
    Sums<T::kCols> d;
    multiply_all<T, kOperands>(d, p, memory, ring, group);
    scale<T, kOperands == Operands::kInt8>(d, p, row_scales, scales, bias);
    add_low_rank<T>(d, p, memory, ring, group);
    writer.write(d);
  }
  writer.finish();
}

#endif

template <class T, Operands kOperands>
__global__ void __launch_bounds__(T::kThreads, 1) fused_gemm_kernel(const __grid_constant__ Arguments p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ std::byte shared[];
  const Memory<T> memory{(shared_address(shared) + T::kAlignment - 1) / T::kAlignment * T::kAlignment};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < T::kStages; ++stage) {
      init_barrier(memory.full(stage), 1);
      init_barrier(memory.empty(stage), T::kGroups * kCluster);
    }
    for (int i = 0; i < T::kBuffers; ++i) init_barrier(memory.loaded(i), 1);
    publish_barriers();
  }
  synchronize_cluster();
  if (threadIdx.x >= T::kGroups * kWarpgroup) {
    give_registers<T::kGroups == 3 ? 32 : 40>();
    if (threadIdx.x / 32 == T::kGroups * 4 && elect()) produce<T, kOperands>(p, memory);
    __syncwarp();
  } else {
    take_registers<T::kGroups == 3 ? 160 : 232>();
    consume<T, kOperands>(p, memory);
  }
  synchronize_cluster();  // until then the other block's copies and arrivals come here
#endif
}

}  // namespace squareq::cuda::sm90
