#include <array>

#include "kernels/cuda/check.h"
#include "kernels/cuda/lora_products.h"
#include "kernels/cuda/reduce.cuh"

namespace squareq::cuda {
namespace {

struct Branch {
  const float *a, *b;
  std::int64_t a_stride, b_stride;
  __nv_bfloat16 *stacked_a, *stacked_b;  // contiguous
  int ranks, rows;                       // of the adapter, of the stack
  int in, out;
  int row_begin, row_count;  // of the linear
  float scale;
};

// As many as a kernel takes as arguments.
struct Branches {
  std::array<Branch, 40> list;
};

// Each thread writes one column of up to kRanks rows of a (of b where blockIdx.y is odd).
constexpr int kRanks = 16;

__global__ void __launch_bounds__(kThreads) stack_kernel(const __grid_constant__ Branches branches) {
  const Branch& branch = branches.list[blockIdx.y / 2];
  const int c = blockIdx.x * kThreads + threadIdx.x;
  const int first = blockIdx.z * kRanks;
  const int last = min(branch.rows, first + kRanks);
  if (blockIdx.y % 2 == 0) {
    if (c >= branch.in) return;
    for (int r = first; r < last; ++r) {
      const float value = r < branch.ranks ? branch.a[r * branch.a_stride + c] : 0.0F;
      branch.stacked_a[static_cast<std::int64_t>(r) * branch.in + c] = __float2bfloat16_rn(value);
    }
  } else {
    if (c >= branch.out) return;
    const int row = c - branch.row_begin;
    const bool reached = row >= 0 && row < branch.row_count;
    for (int r = first; r < last; ++r) {
      const float value = reached && r < branch.ranks ? branch.scale * branch.b[row * branch.b_stride + r] : 0.0F;
      branch.stacked_b[static_cast<std::int64_t>(r) * branch.out + c] = __float2bfloat16_rn(value);
    }
  }
}

Branch described(const LoraBranch& branch) {
  const View &a = branch.stacked_a, &b = branch.stacked_b;
  require(a.dtype == DType::BF16 && b.dtype == DType::BF16 && a.contiguous() && b.contiguous() && a.rows == b.rows &&
              a.rows >= branch.rank() && a.cols == branch.a.cols && b.cols >= branch.row_begin + branch.b.rows,
          "stack_adapters: shapes");
  return {.a = branch.a.f32(),
          .b = branch.b.f32(),
          .a_stride = branch.a.row_stride,
          .b_stride = branch.b.row_stride,
          .stacked_a = reinterpret_cast<__nv_bfloat16*>(a.data),
          .stacked_b = reinterpret_cast<__nv_bfloat16*>(b.data),
          .ranks = static_cast<int>(branch.rank()),
          .rows = static_cast<int>(a.rows),
          .in = static_cast<int>(a.cols),
          .out = static_cast<int>(b.cols),
          .row_begin = static_cast<int>(branch.row_begin),
          .row_count = static_cast<int>(branch.b.rows),
          .scale = branch.scale};
}

}  // namespace

StackedAdapters stacks_of(std::span<const LoraBranch> lora, const Weight& weight) {
  if (lora.empty()) return {};
  StackedAdapters stacks{.a = lora.front().stacked_a, .b = lora.front().stacked_b};
  stacks.a.rows = stacks.b.rows = adapter_columns(lora);
  require(stacks.a.cols == weight.in() && stacks.b.cols == weight.out(), "linear: adapters without stacks");
  return stacks;
}

void stack_adapters(std::span<const LoraBranch> lora, cudaStream_t stream) {
  constexpr std::size_t kMost = std::tuple_size_v<decltype(Branches::list)>;
  for (std::size_t begin = 0; begin < lora.size(); begin += kMost) {
    const auto part = lora.subspan(begin, std::min(kMost, lora.size() - begin));
    Branches branches{};
    int columns = 0, rows = 0;
    for (std::size_t i = 0; i < part.size(); ++i) {
      branches.list[i] = described(part[i]);
      columns = std::max({columns, branches.list[i].in, branches.list[i].out});
      rows = std::max(rows, branches.list[i].rows);
    }
    const dim3 blocks(ceil_div(columns, kThreads), static_cast<unsigned>(2 * part.size()), ceil_div(rows, kRanks));
    stack_kernel<<<blocks, kThreads, 0, stream>>>(branches);
    check_launch("stack_adapters");
  }
}

}  // namespace squareq::cuda
