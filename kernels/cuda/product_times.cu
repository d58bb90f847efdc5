#include "kernels/product_times.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/fused_gemm.h"
#include "kernels/cuda/gemm_descriptions.h"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/timed_event.h"

namespace squareq {
namespace cuda {
namespace {

constexpr std::size_t kWorkspace = std::size_t{64} << 20;

class Memory {
 public:
  explicit Memory(std::size_t bytes) { check(cudaMalloc(&data_, bytes), "cudaMalloc"); }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  void* data_ = nullptr;
};

// Sums of four random bytes: about normal, with a standard deviation of 30 as INT8 and of 1 as BF16. How much power a
// product draws, and so how fast it runs, depends on its data.
template <class T>
__global__ void fill_randomly(T* out, std::int64_t count, std::uint32_t seed) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  std::uint32_t x = static_cast<std::uint32_t>(i) * 0x9E3779B9U + seed;
  for (int round = 0; round < 2; ++round) {
    x = (x ^ (x >> 16)) * 0x7FEB352DU;
    x = (x ^ (x >> 15)) * 0x846CA68BU;
  }
  const int sum = static_cast<int>((x & 255U) + (x >> 8 & 255U) + (x >> 16 & 255U) + (x >> 24)) - 510;
  if constexpr (sizeof(T) == 1) {
    out[i] = static_cast<T>(sum / 5);
  } else {
    out[i] = __float2bfloat16_rn(static_cast<float>(sum) / 148.0F);
  }
}

void fill(const Memory& memory, DType dtype, std::int64_t count, std::uint32_t seed) {
  const unsigned blocks = ceil_div(count, kThreads);
  if (dtype == DType::I8) {
    fill_randomly<<<blocks, kThreads>>>(reinterpret_cast<std::int8_t*>(memory.data()), count, seed);
  } else {
    fill_randomly<<<blocks, kThreads>>>(reinterpret_cast<__nv_bfloat16*>(memory.data()), count, seed);
  }
  check_launch("fill_randomly");
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double seconds_of(const std::function<void()>& work) {
  const TimedEvent begin, end;
  begin.record(nullptr);
  for (int i = 0; i < kProductsInARow; ++i) work();
  end.record(nullptr);
  return end.since(begin) / kProductsInARow;
}

// cuBLASLt's product of the same operands.
class LibraryProduct {
 public:
  LibraryProduct(const ProductShape& s, const Memory& a, const Memory& b, const Memory& y)
      : int8_(s.int8), a_(a), b_(b), y_(y), workspace_(kWorkspace) {
    check(cublasLtCreate(&handle_), "cublasLtCreate");
    operation_ = make_operation(int8_ ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F, int8_ ? CUDA_R_32I : CUDA_R_32F);
    set(operation_, CUBLASLT_MATMUL_DESC_TRANSA, s.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    const cudaDataType_t type = int8_ ? CUDA_R_8I : CUDA_R_16BF;
    a_layout_ = make_layout(type, s.m, s.k, s.k);
    b_layout_ = s.b_transposed ? make_layout(type, s.n, s.k, s.k) : make_layout(type, s.k, s.n, s.n);
    y_layout_ = make_layout(int8_ ? CUDA_R_32I : CUDA_R_16BF, s.m, s.n, s.n);
    choose();
  }
  ~LibraryProduct() { cublasLtDestroy(handle_); }
  LibraryProduct(const LibraryProduct&) = delete;
  LibraryProduct& operator=(const LibraryProduct&) = delete;

  void run() const { check(run(algorithm_), "cublasLtMatmul"); }

 private:
  cublasStatus_t run(const cublasLtMatmulAlgo_t& algorithm) const {
    constexpr std::int32_t kOne = 1, kZero = 0;
    constexpr float kOneFloat = 1.0F, kZeroFloat = 0.0F;
    const void* alpha = int8_ ? static_cast<const void*>(&kOne) : &kOneFloat;
    const void* beta = int8_ ? static_cast<const void*>(&kZero) : &kZeroFloat;
    return cublasLtMatmul(handle_, operation_.get(), alpha, b_.data(), b_layout_.get(), a_.data(), a_layout_.get(),
                          beta, y_.data(), y_layout_.get(), y_.data(), y_layout_.get(), &algorithm, workspace_.data(),
                          kWorkspace, nullptr);
  }
  void choose() {
    constexpr int kCandidates = 16;
    cublasLtMatmulHeuristicResult_t candidates[kCandidates];
    int count = 0;
    check(cublasLtMatmulAlgoGetHeuristic(handle_, operation_.get(), b_layout_.get(), a_layout_.get(), y_layout_.get(),
                                         y_layout_.get(), make_preference(kWorkspace).get(), kCandidates, candidates,
                                         &count),
          "cublasLtMatmulAlgoGetHeuristic");
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < count; ++i) {
      if (run(candidates[i].algo) != CUBLAS_STATUS_SUCCESS) continue;
      const double seconds = seconds_of([&] { static_cast<void>(run(candidates[i].algo)); });
      if (seconds >= best) continue;
      best = seconds;
      algorithm_ = candidates[i].algo;
    }
  }

  bool int8_;
  const Memory &a_, &b_, &y_;
  Memory workspace_;
  cublasLtHandle_t handle_ = nullptr;
  Operation operation_;
  Layout a_layout_, b_layout_, y_layout_;
  cublasLtMatmulAlgo_t algorithm_{};
};

FusedGemm fused_product(const ProductShape& s, const Memory& a, const Memory& b, const Memory& scales,
                        const Memory& y) {
  const ConstView b_scale = View(scales.data(), DType::F32, 1, 1, s.b_transposed ? s.n : s.k);
  FusedGemm gemm{.a = View(a.data(), s.int8 ? DType::I8 : DType::BF16, 1, s.m, s.k),
                 .b = s.b_transposed ? View(b.data(), DType::I8, 1, s.n, s.k) : View(b.data(), DType::I8, 1, s.k, s.n),
                 .transpose_b = s.b_transposed ? Transpose::kYes : Transpose::kNo,
                 .b_scale = b_scale,
                 .y = View(y.data(), DType::BF16, 1, s.m, s.n)};
  if (s.int8) gemm.a_scale = View(scales.data(), DType::F32, 1, 1, s.m);
  return gemm;
}

}  // namespace
}  // namespace cuda

ProductTimes time_cuda_product(const ProductShape& s, int repeats, const std::vector<std::function<double()>>& others) {
  using namespace cuda;
  const DType type = s.int8 ? DType::I8 : DType::BF16;
  const auto bytes = [](std::int64_t count, DType t) { return static_cast<std::size_t>(count) * size_of(t); };
  const Memory a(bytes(s.m * s.k, type)), b(bytes(s.n * s.k, DType::I8)), y(bytes(s.m * s.n, DType::F32));
  const Memory wide_b(s.int8 ? 0 : bytes(s.n * s.k, type));
  const std::size_t scale_bytes = bytes(std::max({s.m, s.n, s.k}), DType::F32);
  const Memory scales(scale_bytes);
  fill(a, type, s.m * s.k, 1);
  fill(b, DType::I8, s.n * s.k, 2);
  if (!s.int8) fill(wide_b, type, s.n * s.k, 2);
  check(cudaMemset(scales.data(), 0x3C, scale_bytes), "cudaMemset");  // 0.0115

  const LibraryProduct library(s, a, s.int8 ? b : wide_b, y);
  const FusedGemm gemm = fused_product(s, a, b, scales, y);
  const TensorCores cores = tensor_cores_of_current_device();
  const bool supported = fused_gemm_supports(gemm, cores);
  std::vector<std::function<double()>> contenders{
      [&] { return seconds_of([&] { library.run(); }); },
      [&] { return supported ? seconds_of([&] { fused_gemm(gemm, cores, nullptr); }) : 0.0; }};
  contenders.insert(contenders.end(), others.begin(), others.end());
  std::vector<std::vector<double>> times(contenders.size());
  for (int i = 0; i <= repeats; ++i) {  // the first time warms up
    for (std::size_t k = 0; k < contenders.size(); ++k) {
      // None always follows the same one, whose heat it would meet.
      const std::size_t c = (k + static_cast<std::size_t>(i)) % contenders.size();
      const double time = contenders[c]();
      if (i > 0) times[c].push_back(time);
    }
  }
  ProductTimes result{.fused = median(times[1]), .library = median(times[0])};
  for (std::size_t c = 2; c < times.size(); ++c) result.others.push_back(median(times[c]));
  return result;
}

}  // namespace squareq
