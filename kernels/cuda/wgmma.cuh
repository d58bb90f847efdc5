// Hopper's warpgroup matrix multiply, wgmma (PTX ISA, "Asynchronous warpgroup level matrix instructions"), for compute
// capability 9.0 only: d [64, N] (+)= a [64, K] b [N, K]^T for the four warps of a warpgroup, operands in shared memory
// or a in registers. Each row of K-major operands has 128 bytes, swizzled as TMA's 128-byte mode does.
//
// A thread holds d[4 j + i], i < 4, of row 16 * (warp % 4) + lane / 4 (+ 8 for i >= 2) and column
// 8 j + 2 * (lane % 4) + i % 2: int32 or float32 bits, in the same places for both.
#pragma once

#include <cstdint>

namespace squareq::cuda::hopper {

template <int N>
using Sums = std::uint32_t[N / 2];

constexpr std::uint32_t kRowBytes = 128;             // of an operand in shared memory
constexpr std::uint32_t kAtomBytes = 8 * kRowBytes;  // the swizzle repeats after eight rows
constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;

// Operand whose rows are rows of the matrix: [rows, 128 bytes of K]. Steps along K move the address within the row.
__device__ inline std::uint64_t k_major(std::uint32_t address) {
  return kSwizzle128 | (std::uint64_t{kAtomBytes >> 4} << 32) | ((address & 0x3FFFFU) >> 4);
}
// Operand (BF16) whose rows are steps of K: panels of [panel_rows of K, 64 columns of the matrix] one after another.
// Steps along K move the address by whole rows.
__device__ inline std::uint64_t mn_major(std::uint32_t address, std::uint32_t panel_bytes) {
  return kSwizzle128 | (std::uint64_t{kAtomBytes >> 4} << 32) | (std::uint64_t{panel_bytes >> 4} << 16) |
         ((address & 0x3FFFFU) >> 4);
}

// Registers written by other instructions before this are visible to the multiplies after it.
__device__ inline void fence_registers() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_multiplies() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most kPending committed groups are under way.
template <int kPending>
__device__ void wait_multiplies() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// clang-format off
#define SQUAREQ_NAMES_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
  "%62, %63"
#define SQUAREQ_NAMES_96 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
  "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SQUAREQ_NAMES_128 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
  "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, " \
  "%102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, " \
  "%119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SQUAREQ_REGISTERS_16(d, i) \
  "+r"((d)[(i) + 0]), "+r"((d)[(i) + 1]), "+r"((d)[(i) + 2]), "+r"((d)[(i) + 3]), "+r"((d)[(i) + 4]), \
  "+r"((d)[(i) + 5]), "+r"((d)[(i) + 6]), "+r"((d)[(i) + 7]), "+r"((d)[(i) + 8]), "+r"((d)[(i) + 9]), \
  "+r"((d)[(i) + 10]), "+r"((d)[(i) + 11]), "+r"((d)[(i) + 12]), "+r"((d)[(i) + 13]), "+r"((d)[(i) + 14]), \
  "+r"((d)[(i) + 15])
#define SQUAREQ_REGISTERS_64(d) \
  SQUAREQ_REGISTERS_16(d, 0), SQUAREQ_REGISTERS_16(d, 16), SQUAREQ_REGISTERS_16(d, 32), SQUAREQ_REGISTERS_16(d, 48)
#define SQUAREQ_REGISTERS_96(d) SQUAREQ_REGISTERS_64(d), SQUAREQ_REGISTERS_16(d, 64), SQUAREQ_REGISTERS_16(d, 80)
#define SQUAREQ_REGISTERS_128(d) SQUAREQ_REGISTERS_96(d), SQUAREQ_REGISTERS_16(d, 96), SQUAREQ_REGISTERS_16(d, 112)
// clang-format on

// 32 steps of K of INT8 into int32. Without `add` the old sums are dropped.
template <int N>
__device__ void multiply_s8(Sums<N>& d, std::uint64_t a, std::uint64_t b, bool add) {
  static_assert(N == 192 || N == 256);
  if constexpr (N == 192) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k32.s32.s8.s8 {" SQUAREQ_NAMES_96 "}, %96, %97, p; }"
        : SQUAREQ_REGISTERS_96(d)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
  } else {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {" SQUAREQ_NAMES_128 "}, %128, %129, p; }"
        : SQUAREQ_REGISTERS_128(d)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
  }
}

// 16 steps of K of BF16 into float32; b is MN-major or K-major.
template <int N, bool kMnMajor>
__device__ void multiply_bf16(Sums<N>& d, std::uint64_t a, std::uint64_t b, bool add) {
  static_assert(N == 192 || N == 256);
  if constexpr (N == 192) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" SQUAREQ_NAMES_96 "}, %96, %97, p, 1, 1, 0, %99; }"
        : SQUAREQ_REGISTERS_96(d)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(kMnMajor)));
  } else {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" SQUAREQ_NAMES_128 "}, %128, %129, p, 1, 1, 0, %131; }"
        : SQUAREQ_REGISTERS_128(d)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(kMnMajor)));
  }
}

// The same with a in registers, four pairs of values: of K 2 * (lane % 4) and its right neighbour, in row
// 16 * (warp % 4) + lane / 4 and in the row 8 below, then the same for K + 8. b is K-major.
template <int N>
__device__ void multiply_bf16(Sums<N>& d, const std::uint32_t* a, std::uint64_t b, bool add) {
  static_assert(N == 128 || N == 192 || N == 256);
  if constexpr (N == 128) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" SQUAREQ_NAMES_64
        "}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, 0; }"
        : SQUAREQ_REGISTERS_64(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
  } else if constexpr (N == 192) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %101, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" SQUAREQ_NAMES_96
        "}, "
        "{%96, %97, %98, %99}, %100, p, 1, 1, 0; }"
        : SQUAREQ_REGISTERS_96(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
  } else {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %133, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" SQUAREQ_NAMES_128
        "}, "
        "{%128, %129, %130, %131}, %132, p, 1, 1, 0; }"
        : SQUAREQ_REGISTERS_128(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
  }
}

#undef SQUAREQ_NAMES_64
#undef SQUAREQ_NAMES_96
#undef SQUAREQ_NAMES_128
#undef SQUAREQ_REGISTERS_16
#undef SQUAREQ_REGISTERS_64
#undef SQUAREQ_REGISTERS_96
#undef SQUAREQ_REGISTERS_128

}  // namespace squareq::cuda::hopper
