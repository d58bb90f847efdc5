#include "kernels/cuda/attention_cudnn.h"

#include <cudnn_frontend.h>
#include <dlfcn.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <map>
#include <unordered_map>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/cuda/attention_views.h"
#include "kernels/cuda/check.h"

namespace cudnn_frontend {

// The frontend, told to load cuDNN while the program runs (NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING), looks for its
// functions here. So a program starts where there is no cuDNN.
void* cudnn_dlhandle = nullptr;

}  // namespace cudnn_frontend

namespace squareq::cuda {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using TensorPointer = std::shared_ptr<fe::graph::Tensor_attributes>;

constexpr int kOldest = 90000;  // version of cuDNN

ConfigError unusable(std::string found) {
  return ConfigError({.where = "attention",
                      .found = std::move(found),
                      .expected = "cuDNN 9 for this CUDA version where the loader finds it",
                      .advice = "install it or set LD_LIBRARY_PATH (docs/gpu.md), or choose the portable kernels"});
}

void check(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  throw DeviceError({.where = "cuDNN", .found = std::string(what) + ": " + fe::detail::get_error_string(status)});
}

void check(const fe::error_t& error, const char* what) {
  if (error.is_good()) return;
  throw DeviceError({.where = "cuDNN", .found = std::string(what) + ": " + error.err_msg});
}

// Loaded once a process and kept: cuDNN's own threads and caches do not survive being unloaded.
void load_cudnn() {
  if (fe::cudnn_dlhandle == nullptr) fe::cudnn_dlhandle = dlopen("libcudnn.so.9", RTLD_NOW);
  if (fe::cudnn_dlhandle == nullptr) throw unusable(dlerror());
  // The frontend takes any CUDA runtime it finds; it has to be of the version that this was compiled for.
  const std::string runtime = "libcudart.so." + std::to_string(CUDART_VERSION / 1000);
  setenv("CUDNN_FRONTEND_CUDART_LIB_NAME", runtime.c_str(), 0);
}

class Handle {
 public:
  explicit Handle(cudaStream_t stream) {
    check(fe::detail::create_handle(&handle_), "cudnnCreate");
    const cudnnStatus_t status = fe::detail::set_stream(handle_, stream);
    if (status != CUDNN_STATUS_SUCCESS) fe::detail::destroy_handle(handle_);
    check(status, "cudnnSetStream");
  }
  ~Handle() { fe::detail::destroy_handle(handle_); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  cudnnHandle_t get() const { return handle_; }

 private:
  cudnnHandle_t handle_ = nullptr;
};

enum Name : std::int64_t { kQ = 1, kK, kV, kO, kLogSumExp, kDo, kDq, kDk, kDv };
using Operands = std::vector<std::pair<Name, ConstView>>;

// All but log_sum_exp.
Operands operands(const Attention& p) { return {{kQ, p.q}, {kK, p.k}, {kV, p.v}, {kO, p.o}}; }
Operands operands(const AttentionBackward& p) {
  return {{kQ, p.q}, {kK, p.k}, {kV, p.v}, {kO, p.o}, {kDo, p.d_o}, {kDq, p.dq}, {kDk, p.dk}, {kDv, p.dv}};
}

bool has_bias(const Attention& p) { return p.bias.count() > 0; }
bool has_bias(const AttentionBackward&) { return false; }

template <class Call>
bool is_plain(const Call& p) {
  if (p.causal || has_bias(p) || !p.valid_keys.empty()) return false;
  if (p.q.count() == 0 || p.q.cols / p.heads > 128 || !p.log_sum_exp.contiguous()) return false;
  for (const auto& [name, view] : operands(p)) {
    if (!has_aligned_heads(view, p.heads)) return false;
  }
  return true;
}

std::vector<std::int64_t> dimensions(const ConstView& v, std::int64_t heads) {
  return {v.batch, heads, v.rows, v.cols / heads};
}
std::vector<std::int64_t> strides(const ConstView& v, std::int64_t heads) {
  return {v.batch_stride, v.cols / heads, v.row_stride, 1};
}

// Samples [first, first + n).
AttentionBackward slice(AttentionBackward p, std::int64_t first, std::int64_t n) {
  for (ConstView* v : {&p.d_o, &p.q, &p.k, &p.v, &p.o, &p.log_sum_exp}) *v = v->batch_slice(first, n);
  for (View* v : {&p.dq, &p.dk, &p.dv}) *v = v->batch_slice(first, n);
  return p;
}

struct Plan : CudnnPlan {
  std::unique_ptr<Graph> graph;  // null where cuDNN has no engine
};

// A graph in which one call is described. Tensors are bfloat16 unless said, and everything between is float32.
class Description {
 public:
  explicit Description(std::int64_t heads) : heads_(heads) {
    graph_->set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
  }

  void describe(const Attention& p) {
    const bool wants_sums = p.log_sum_exp.count() > 0;
    auto options = fe::graph::SDPA_attributes().set_attn_scale(p.scale).set_generate_stats(wants_sums);
    auto [o, sums] = graph_->sdpa(input(kQ, p.q), input(kK, p.k), input(kV, p.v), options);
    output(o, kO, p.o);
    if (wants_sums) sums->set_output(true).set_data_type(fe::DataType_t::FLOAT).set_uid(kLogSumExp);
  }
  void describe(const AttentionBackward& p, bool deterministic) {
    const auto sums = graph_->tensor(fe::graph::Tensor_attributes()
                                         .set_uid(kLogSumExp)
                                         .set_data_type(fe::DataType_t::FLOAT)
                                         .set_dim({p.q.batch, heads_, p.q.rows, 1})
                                         .set_stride({heads_ * p.q.rows, p.q.rows, 1, 1}));
    auto options =
        fe::graph::SDPA_backward_attributes().set_attn_scale(p.scale).set_deterministic_algorithm(deterministic);
    auto [dq, dk, dv] = graph_->sdpa_backward(input(kQ, p.q), input(kK, p.k), input(kV, p.v), input(kO, p.o),
                                              input(kDo, p.d_o), sums, options);
    output(dq, kDq, p.dq);
    output(dk, kDk, p.dk);
    output(dv, kDv, p.dv);
  }

  Plan build(cudnnHandle_t handle) {
    Plan plan;
    if (graph_->build(handle, {fe::HeurMode_t::A}).is_bad()) return plan;
    check(graph_->get_workspace_size(plan.workspace), "the size of a workspace");
    check(graph_->get_plan_name(plan.name), "the name of a plan");
    plan.graph = std::move(graph_);
    return plan;
  }

 private:
  TensorPointer input(Name name, const ConstView& v) {
    return graph_->tensor(
        fe::graph::Tensor_attributes().set_uid(name).set_dim(dimensions(v, heads_)).set_stride(strides(v, heads_)));
  }
  void output(const TensorPointer& tensor, Name name, const ConstView& v) {
    tensor->set_output(true).set_uid(name).set_dim(dimensions(v, heads_)).set_stride(strides(v, heads_));
  }

  std::int64_t heads_;
  std::unique_ptr<Graph> graph_ = std::make_unique<Graph>();
};

class LoadedCudnnAttention : public CudnnAttention {
 public:
  LoadedCudnnAttention(cudaStream_t stream, const CudnnAttentionOptions& options)
      : handle_(stream), options_(options) {}

  std::string version() const override {
    const std::size_t v = fe::detail::get_backend_version();
    return std::to_string(v / 10000) + "." + std::to_string(v / 100 % 100) + "." + std::to_string(v % 100);
  }

  const CudnnPlan* plan(const Attention& p) override { return find(p); }
  const CudnnPlan* plan(const AttentionBackward& p) override {
    return p.q.count() > 0 ? find(slice(p, 0, samples_at_a_time(p))) : nullptr;
  }
  void run(const Attention& p, View workspace) override { execute(p, workspace); }
  void run(const AttentionBackward& p, View workspace) override {
    const std::int64_t samples = samples_at_a_time(p);
    for (std::int64_t first = 0; first < p.q.batch; first += samples) execute(slice(p, first, samples), workspace);
  }

 private:
  using Key = std::vector<std::int64_t>;  // all that a plan depends on

  // On Hopper, the deterministic backward writes the gradient of the scores of all heads, in bfloat16, to its
  // workspace. The largest share of the batch whose scores are no more than kScores, and at least one sample.
  std::int64_t samples_at_a_time(const AttentionBackward& p) const {
    constexpr std::int64_t kScores = std::int64_t{1} << 30;  // bytes
    if (!options_.deterministic) return p.q.batch;
    const std::int64_t each = p.heads * p.q.rows * p.q.rows * 2;
    std::int64_t samples = std::clamp<std::int64_t>(kScores / each, 1, p.q.batch);
    while (p.q.batch % samples != 0) --samples;
    return samples;
  }

  template <class Call>
  const Plan* find(const Call& p) {
    if (p.q.rows < options_.shortest || !is_plain(p)) return nullptr;
    Key key{p.q.batch, p.q.rows, p.q.cols, p.heads, std::bit_cast<std::int32_t>(p.scale), p.log_sum_exp.count()};
    for (const auto& [name, view] : operands(p)) key.insert(key.end(), {view.batch_stride, view.row_stride});
    auto found = plans_.find(key);
    if (found == plans_.end()) found = plans_.emplace(std::move(key), build(p)).first;
    return found->second.graph ? &found->second : nullptr;
  }

  Plan build(const Attention& p) {
    Description description(p.heads);
    description.describe(p);
    return description.build(handle_.get());
  }
  Plan build(const AttentionBackward& p) {
    Description description(p.heads);
    description.describe(p, options_.deterministic);
    return description.build(handle_.get());
  }

  template <class Call>
  void execute(const Call& p, View workspace) {
    // cuDNN does not write what is const here, but takes all in one list.
    const auto pointer = [](const ConstView& v) { return const_cast<std::byte*>(v.data); };
    std::unordered_map<std::int64_t, void*> memory{{kLogSumExp, pointer(p.log_sum_exp)}};
    for (const auto& [name, view] : operands(p)) memory.emplace(name, pointer(view));
    check(find(p)->graph->execute(handle_.get(), memory, workspace.data), "attention");
  }

  Handle handle_;
  CudnnAttentionOptions options_;
  std::map<Key, Plan> plans_;
};

}  // namespace

std::unique_ptr<CudnnAttention> open_cudnn_attention(cudaStream_t stream, const CudnnAttentionOptions& options) {
  load_cudnn();
  try {
    int device = 0;
    static_cast<void>(fe::detail::cuda_get_device(&device));  // is there a CUDA runtime for the frontend?
    auto opened = std::make_unique<LoadedCudnnAttention>(stream, options);
    if (fe::detail::get_backend_version() < kOldest) throw unusable("cuDNN " + opened->version());
    return opened;
  } catch (const Error&) {
    throw;
  } catch (const std::runtime_error& missing) {  // how the frontend says that a library or function is missing
    throw unusable(missing.what());
  }
}

}  // namespace squareq::cuda
