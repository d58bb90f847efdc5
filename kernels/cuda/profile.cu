#include "kernels/cuda/profile.h"

#include <vector>

#include "kernels/cuda/check.h"

namespace squareq::cuda {

Profile::Profile(cudaStream_t stream) : stream_(stream) { mark(); }

void Profile::mark() {
  marks_.push_back({.event = {}, .family = open_.back()});
  marks_.back().event.record(stream_);
}

void Profile::enter(KernelFamily family, double work) {
  times_[static_cast<std::size_t>(family)].work += work;
  open_.push_back(family);
  mark();
}

void Profile::leave() {
  open_.pop_back();
  mark();
}

KernelTimes Profile::times() {
  mark();
  KernelTimes result = times_;
  for (std::size_t i = 0; i + 1 < marks_.size(); ++i) {
    result[static_cast<std::size_t>(marks_[i].family)].seconds += marks_[i + 1].event.since(marks_[i].event);
  }
  return result;
}

namespace {

class Graph {
 public:
  // What `work` puts on the stream, without running it.
  Graph(cudaStream_t stream, const std::function<void()>& work) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    try {
      work();
    } catch (...) {
      cudaStreamEndCapture(stream, &graph_);
      destroy();
      throw;
    }
    check(cudaStreamEndCapture(stream, &graph_), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&executable_, graph_, 0), "cudaGraphInstantiate");
  }
  ~Graph() { destroy(); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  std::int64_t kernels() const {
    std::size_t count = 0;
    check(cudaGraphGetNodes(graph_, nullptr, &count), "cudaGraphGetNodes");
    std::vector<cudaGraphNode_t> nodes(count);
    check(cudaGraphGetNodes(graph_, nodes.data(), &count), "cudaGraphGetNodes");
    std::int64_t kernels = 0;
    for (const cudaGraphNode_t node : nodes) {
      cudaGraphNodeType type{};
      check(cudaGraphNodeGetType(node, &type), "cudaGraphNodeGetType");
      if (type == cudaGraphNodeTypeKernel) ++kernels;
    }
    return kernels;
  }
  void launch(cudaStream_t stream) const { check(cudaGraphLaunch(executable_, stream), "cudaGraphLaunch"); }

 private:
  void destroy() {
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
  }

  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

Device::Kernels back_to_back(cudaStream_t stream, const std::function<void()>& work) {
  const Graph graph(stream, work);
  graph.launch(stream);
  Profile profile(stream);
  graph.launch(stream);
  return {graph.kernels(), profile.times()[static_cast<std::size_t>(KernelFamily::kOther)].seconds};
}

}  // namespace squareq::cuda
