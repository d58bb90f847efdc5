#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_descriptions.h"

#include <algorithm>
#include <limits>
#include <sstream>

#include "kernels/base/carver.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/timed_event.h"

namespace squareq::cuda {
namespace {

cudaDataType_t type_of(DType dtype) {
  if (dtype == DType::BF16) return CUDA_R_16BF;
  if (dtype == DType::F32) return CUDA_R_32F;
  throw std::logic_error("GEMM of a type that is neither BF16 nor F32");
}

Layout layout_of(const GemmMatrix& m, std::int64_t rows, std::int64_t cols, std::int64_t batch) {
  Layout layout = make_layout(type_of(m.dtype), rows, cols, m.stride);
  set(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<std::int32_t>(batch));
  set(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, m.batch_stride);
  return layout;
}

// The largest power of two up to 256 that divides the address.
std::uint32_t alignment(const void* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p) | 256U;
  return static_cast<std::uint32_t>(address & (~address + 1));
}

// Elements from the first to the last.
std::int64_t extent(const GemmMatrix& m, std::int64_t rows, std::int64_t cols, std::int64_t batch) {
  return (batch - 1) * m.batch_stride + (rows - 1) * m.stride + cols;
}

// Pairs of bfloat16 of size 1/2 to 1 and any sign: as float32, numbers of that size too. Zeros would be multiplied
// faster than what comes later.
__global__ void fill_random(unsigned* to, std::int64_t count) {
  const std::int64_t first = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (std::int64_t i = first; i < count; i += std::int64_t{gridDim.x} * blockDim.x) {
    unsigned h = static_cast<unsigned>(i) * 2654435761U;
    h = (h ^ (h >> 15)) * 2246822519U;
    to[i] = ((h ^ (h >> 13)) & 0x807F807FU) | 0x3F003F00U;
  }
}

constexpr int kProposals = 16;  // that are timed for a shape

FormatError bad_choices(const std::string& found) {
  return FormatError({.where = "kernel choices",
                      .found = found,
                      .expected = "choices made with this GPU, driver and cuBLASLt",
                      .advice = "go on with the GPU and software that they were made with, or without them: results "
                                "then differ in the last bits"});
}

}  // namespace

struct GemmPlans::Plan {
  Operation operation;
  Layout a, b, c;
  cublasLtMatmulAlgo_t algorithm{};

  void set_algorithm(const Algorithm& words) { std::copy(words.begin(), words.end(), std::begin(algorithm.data)); }
};

GemmPlans::GemmPlans(cudaStream_t stream) : stream_(stream) { check(cublasLtCreate(&handle_), "cublasLtCreate"); }
GemmPlans::~GemmPlans() { cublasLtDestroy(handle_); }

GemmPlans::Key GemmPlans::key_of(const Gemm& g) {
  return {g.transpose_a == Transpose::kYes,
          g.transpose_b == Transpose::kYes,
          g.batch,
          g.m,
          g.n,
          g.k,
          g.a.stride,
          g.b.stride,
          g.c.stride,
          g.a.batch_stride,
          g.b.batch_stride,
          g.c.batch_stride,
          g.a.dtype == DType::F32,
          g.c.dtype == DType::F32,
          g.bias.count() > 0,
          g.beta != 0.0F,
          alignment(g.a.data),
          alignment(g.b.data),
          alignment(g.c.data),
          alignment(g.bias.data)};
}

std::unique_ptr<GemmPlans::Plan> GemmPlans::make_plan(const Gemm& g) {
  const bool ta = g.transpose_a == Transpose::kYes;
  const bool tb = g.transpose_b == Transpose::kYes;
  auto plan = std::make_unique<Plan>();
  plan->operation = make_operation(CUBLAS_COMPUTE_32F, CUDA_R_32F);
  set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, tb ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, ta ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (g.bias.count() > 0) {
    set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(g.c.dtype));
  }
  plan->a = layout_of(g.a, ta ? g.k : g.m, ta ? g.m : g.k, g.batch);
  plan->b = layout_of(g.b, tb ? g.n : g.k, tb ? g.k : g.n, g.batch);
  plan->c = layout_of(g.c, g.m, g.n, g.batch);
  return plan;
}

std::vector<GemmPlans::Algorithm> GemmPlans::proposals(const Plan& plan, const Gemm& g, int most) const {
  const Preference preference = make_preference(static_cast<std::size_t>(kWorkspace));
  // Split sums are added in a fixed order, in float32.
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(g.b.data));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(g.a.data));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(g.c.data));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(g.c.data));
  std::array<cublasLtMatmulHeuristicResult_t, kProposals> results{};
  int count = 0;
  check(cublasLtMatmulAlgoGetHeuristic(handle_, plan.operation.get(), plan.b.get(), plan.a.get(), plan.c.get(),
                                       plan.c.get(), preference.get(), most, results.data(), &count),
        "cublasLtMatmulAlgoGetHeuristic");
  std::vector<Algorithm> found;
  for (int i = 0; i < count; ++i) {
    const auto& result = results[static_cast<std::size_t>(i)];
    if (result.state != CUBLAS_STATUS_SUCCESS) continue;
    static_assert(sizeof(Algorithm) == sizeof(result.algo.data));
    std::copy(std::begin(result.algo.data), std::end(result.algo.data), found.emplace_back().begin());
  }
  if (found.empty()) check(CUBLAS_STATUS_NOT_SUPPORTED, "no algorithm for a matrix product");
  return found;
}

void GemmPlans::multiply(const Plan& p, const Gemm& g, View workspace) const {
  if (g.bias.count() > 0) set(p.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias.data);
  const float alpha = 1.0F;
  check(cublasLtMatmul(handle_, p.operation.get(), &alpha, g.b.data, p.b.get(), g.a.data, p.a.get(), &g.beta, g.c.data,
                       p.c.get(), const_cast<std::byte*>(g.c.data), p.c.get(), &p.algorithm, workspace.data,
                       workspace.bytes(), stream_),
        "cublasLtMatmul");
}

void GemmPlans::run(const Gemm& g, View workspace) {
  if (g.batch == 0 || g.m == 0 || g.n == 0) return;
  const Key key = key_of(g);
  std::unique_ptr<Plan>& plan = plans_[key];
  if (!plan) {
    std::unique_ptr<Plan> fresh = make_plan(g);
    const auto chosen = choices_.find(key);
    fresh->set_algorithm(chosen != choices_.end() ? chosen->second : proposals(*fresh, g, 1).front());
    plan = std::move(fresh);
  }
  multiply(*plan, g, workspace);
}

void GemmPlans::foresee(const Gemm& g) {
  if (g.batch > 0 && g.m > 0 && g.n > 0 && g.k > 0) foreseen_.emplace(key_of(g), g);
}

void GemmPlans::tune(View memory) {
  const std::map<Key, Gemm> foreseen = std::move(foreseen_);
  foreseen_.clear();
  const auto unknown = [&](const auto& entry) { return !choices_.contains(entry.first); };
  if (std::none_of(foreseen.begin(), foreseen.end(), unknown)) return;
  fill_random<<<1024, 256, 0, stream_>>>(reinterpret_cast<unsigned*>(memory.data),
                                         static_cast<std::int64_t>(memory.bytes() / sizeof(unsigned)));
  check_launch("fill_random");
  for (const auto& [key, gemm] : foreseen) {
    if (!choices_.contains(key)) choose(key, gemm, memory);
  }
}

// The least of some runs, after one that does not count.
double GemmPlans::seconds(const Plan& plan, const Gemm& g, View workspace) const {
  constexpr int kRuns = 3;
  const TimedEvent begin, end;
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i <= kRuns; ++i) {
    begin.record(stream_);
    multiply(plan, g, workspace);
    end.record(stream_);
    const double time = end.since(begin);
    if (i > 0) least = std::min(least, time);
  }
  return least;
}

void GemmPlans::choose(const Key& key, const Gemm& foreseen, View memory) {
  Gemm g = foreseen;
  View workspace;
  // Only what is written needs memory of its own: factors may lie anywhere among the random numbers.
  const auto layout = [&](Carver& carver) {
    workspace = carver.take(DType::U8, 1, 1, kWorkspace);
    g.c.data = carver.take(g.c.dtype, 1, 1, extent(g.c, g.m, g.n, g.batch)).data;
    g.bias.data = carver.take(g.c.dtype, 1, 1, g.n).data;
    const bool ta = g.transpose_a == Transpose::kYes, tb = g.transpose_b == Transpose::kYes;
    g.a.data = carver.take(g.a.dtype, 1, 1, extent(g.a, ta ? g.k : g.m, ta ? g.m : g.k, g.batch)).data;
    g.b.data = carver.take(g.b.dtype, 1, 1, extent(g.b, tb ? g.n : g.k, tb ? g.k : g.n, g.batch)).data;
  };
  Carver measure;
  layout(measure);
  if (measure.used() > memory.bytes()) return;
  Carver carver(memory.data, memory.bytes());
  layout(carver);

  const std::unique_ptr<Plan> plan = make_plan(g);
  double least = std::numeric_limits<double>::infinity();
  for (const Algorithm& algorithm : proposals(*plan, foreseen, kProposals)) {
    plan->set_algorithm(algorithm);
    const double time = seconds(*plan, g, workspace);
    if (time >= least) continue;
    least = time;
    choices_[key] = algorithm;
  }
  plans_.erase(key);
}

std::string GemmPlans::identity() const {
  int device = 0, driver = 0;
  cudaDeviceProp properties{};
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  return std::string(properties.name) + " driver " + std::to_string(driver) + " cuBLASLt " +
         std::to_string(cublasLtGetVersion());
}

// IDENTITY;KEY=ALGORITHM;KEY=ALGORITHM... of numbers separated by blanks.
std::string GemmPlans::choices() const {
  std::ostringstream text;
  text << identity();
  for (const auto& [key, algorithm] : choices_) {
    for (std::size_t i = 0; i < key.size(); ++i) text << (i == 0 ? ';' : ' ') << key[i];
    for (std::size_t i = 0; i < algorithm.size(); ++i) text << (i == 0 ? '=' : ' ') << algorithm[i];
  }
  return text.str();
}

void GemmPlans::restore(std::string_view choices) {
  std::istringstream text{std::string(choices)};
  std::string entry;
  std::getline(text, entry, ';');
  if (entry != identity()) throw bad_choices("those of '" + entry + "'");
  std::map<Key, Algorithm> restored;
  while (std::getline(text, entry, ';')) {
    std::istringstream numbers(entry);
    Key key{};
    Algorithm algorithm{};
    for (std::int64_t& value : key) numbers >> value;
    if (numbers.get() != '=') throw bad_choices("a damaged entry '" + entry + "'");
    for (std::uint64_t& word : algorithm) numbers >> word;
    if (numbers.fail() || numbers.peek() != std::char_traits<char>::eof()) {
      throw bad_choices("a damaged entry '" + entry + "'");
    }
    restored[key] = algorithm;
  }
  choices_ = std::move(restored);
  plans_.clear();
}

}  // namespace squareq::cuda
