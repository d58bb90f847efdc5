// The CUDA backend of the arithmetic: bfloat16 activations, float32 sums and statistics. Each group of operations
// stands in a file named as its CPU twin's. All work goes to one stream, in order.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/base/carver.h"
#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/fused_gemm.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/lora_products.h"
#include "kernels/cuda/profile.h"
#include "kernels/cuda/quantise.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace squareq::cuda {

class CudaOps : public Ops {
 public:
  // `cudnn`, which may be null, computes the attention that it has plans for.
  CudaOps(cudaStream_t stream, const DeviceOptions& options, std::unique_ptr<CudnnAttention> cudnn)
      : stream_(stream),
        options_(options),
        gemm_(stream),
        cudnn_(std::move(cudnn)),
        tensor_cores_(tensor_cores_of_current_device()) {}

  DType activation_type() const override { return DType::BF16; }
  std::size_t scratch_need(const std::function<void()>& calls) override;
  void use_scratch(View scratch) override { scratch_ = scratch; }
  void tune(View memory) override { gemm_.tune(memory); }
  std::string identity() const {
    return gemm_.identity() +
           (options_.precision == DeviceOptions::Precision::kW8A8 ? ", INT8 activations" : ", bfloat16 activations");
  }
  std::string kernel_choices() const override { return gemm_.choices(); }
  void restore_kernel_choices(std::string_view choices) override { gemm_.restore(choices); }

  void stack_adapters(std::span<const LoraBranch> lora) override;
  View prepared_form(const Weight& weight) const override;
  bool forward_reads_prepared() const override;
  void prepare(const Weight& weight, View to) override;
  void linear(const LinearForward&) override;
  void linear_backward(const LinearBackward&) override;
  void modulated_norm(const ModulatedNorm&) override;
  void modulated_norm_backward(const ModulatedNormBackward&) override;
  void layer_norm(ConstView x, ConstView gain, ConstView bias, float epsilon, View y) override;
  void rms_norm(ConstView x, ConstView gain, float epsilon, View y) override;
  void group_norm(const GroupNorm&) override;
  void norm_rope(const NormRope&) override;
  void norm_rope_backward(const NormRopeBackward&) override;
  void attention(const Attention&) override;
  void attention_backward(const AttentionBackward&) override;
  void convolution(const Convolution&) override;
  void activation(Activation f, ConstView x, ConstView times, View y) override;
  void activation_backward(Activation f, ConstView dy, ConstView x, View dx, Accumulate accumulate) override;
  void gate_backward(ConstView dsum, ConstView gate, ConstView y, View dy, View dgate) override;
  void gather(ConstView table, std::span<const std::int32_t> ids, View y) override;
  void sinusoid(std::span<const float> values, View y) override;
  void transpose(ConstView x, View y) override;
  void copy(ConstView x, View y, Accumulate accumulate) override;
  void fill(View y, float value) override;
  void flow_loss(const FlowLoss&) override;
  double sum_of_squares(ConstView x) override;
  void adamw(const AdamW&) override;
  void lerp(ConstView x, float weight, View y) override;

  // Times of the operations that `work` calls.
  KernelTimes profile(const std::function<void()>& work);

 private:
  void adamw_codes(const AdamW&);

  // Scratch of one operation, from the start of the region: operations follow each other on the stream, so they can
  // share it. Take all buffers, then return if rehearsing():
  //   Scratch scratch(*this);
  //   const View partial = scratch.take(DType::F32, 1, n, c);
  //   if (scratch.rehearsing()) return;
  class Scratch {
   public:
    explicit Scratch(CudaOps& ops)
        : ops_(ops), carver_(ops.rehearsing_ ? Carver() : Carver(ops.scratch_.data, ops.scratch_.bytes())) {}

    View take(DType dtype, std::int64_t batch, std::int64_t rows, std::int64_t cols) {
      return carver_.take(dtype, batch, rows, cols);
    }
    bool rehearsing() {
      if (ops_.rehearsing_) ops_.peak_ = std::max(ops_.peak_, carver_.used());
      if (!ops_.rehearsing_ && carver_.measuring() && carver_.used() > 0) {
        throw std::logic_error("an operation needs scratch memory: call use_scratch first");
      }
      return ops_.rehearsing_;
    }

   private:
    CudaOps& ops_;
    Carver carver_;
  };

  // The kernels launched while the result lives belong to `family`; `work` as in FamilyTime.
  ProfileSpan timed(KernelFamily family, double work) { return {profile_, family, work}; }
  // Bytes that an operation on these views moves at least.
  static double traffic(std::initializer_list<ConstView> views) {
    double bytes = 0.0;
    for (const ConstView& v : views) bytes += static_cast<double>(v.bytes());
    return bytes;
  }

  // Of `products` matrix products over all pairs of rows.
  static double attention_operations(const ConstView& q, int products) {
    return 2.0 * products * static_cast<double>(q.count()) * static_cast<double>(q.rows);
  }

  static double product_operations(const ConstView& result, std::int64_t k) {
    return 2.0 * static_cast<double>(result.count()) * static_cast<double>(k);
  }

  void convert(ConstView x, View y, Accumulate accumulate);  // copy, of no family of its own

  // Leaves attention or its backward, of `products` matrix products, to cuDNN; false where it has no plan for the call.
  template <class Call>
  bool run_cudnn(const Call& p, int products) {
    const CudnnPlan* plan = cudnn_ ? cudnn_->plan(p) : nullptr;
    if (plan == nullptr) return false;
    Scratch scratch(*this);
    const View workspace = scratch.take(DType::U8, 1, 1, plan->workspace);
    if (scratch.rehearsing()) return true;
    const ProfileSpan span = timed(KernelFamily::kAttention, attention_operations(p.q, products));
    cudnn_->run(p, workspace);
    return true;
  }

  // Parts of linear.
  ConstView as_bf16(Scratch& scratch, ConstView x, std::vector<std::pair<ConstView, View>>& conversions);
  void keep_ranks(std::span<const LoraBranch> lora, const View& u);
  void compute_u(const LinearForward& p, const ConstView& x, const ConstView& a, const View& u);
  // A weight as a product reads it: stored so, prepared, or in scratch, which then is also `missing`: to be filled by
  // prepare().
  struct Operand {
    ConstView values;
    View missing;
  };
  static Operand expanded(Scratch& scratch, const Weight& weight);    // BF16 [out, in]
  static Operand transposed(Scratch& scratch, const Weight& weight);  // I8 [in, out]
  bool multiplies_int8(const Weight& weight) const;
  void convert_all(const std::vector<std::pair<ConstView, View>>& conversions);
  // What the backward pass of a linear needs for its adapters, in scratch.
  struct AdapterScratch {
    StackedAdapters stacked;
    View du;         // [B, T, adapter_columns]
    ConstView x, u;  // in bfloat16; these and the pieces of gradients only if a branch is trained
    View da, db;
  };
  AdapterScratch take_adapters(Scratch& scratch, const LinearBackward& p, bool trained,
                               std::vector<std::pair<ConstView, View>>& conversions);
  void adapter_gradients(const LinearBackward& p, const ConstView& dy, const AdapterScratch& adapters);
  static Gemm product(ConstView x, GemmMatrix w, Transpose transpose, float beta, View y, ConstView bias = {});
  // How the product of a linear layer with its weight is computed: with INT8 rows, or with bfloat16 rows and the weight
  // as it is stored, in INT8, or with both in bfloat16. `saves_passes`: are there adapters or an epilogue?
  enum class Product : std::uint8_t { kAlone, kFusedInt8, kFusedStored, kFusedBf16 };
  enum class Pass : std::uint8_t { kForward, kBackward };
  Product product_of(const Weight& weight, Pass pass, ConstView rows, bool saves_passes,
                     std::initializer_list<ConstView> outputs) const;
  static QuantisedRows take_quantised(Scratch& scratch, const ConstView& x);
  void quantise(const ConstView& x, const ConstView& factors, const QuantisedRows& to);
  void linear_fused(const LinearForward& p, Product path);
  void linear_backward_fused(const LinearBackward& p, Product path);
  void few_rows_linear(const LinearForward& p);
  void few_rows_linear_backward(const LinearBackward& p);

  cudaStream_t stream_;
  DeviceOptions options_;
  GemmPlans gemm_;
  Profile* profile_ = nullptr;
  std::unique_ptr<CudnnAttention> cudnn_;
  TensorCores tensor_cores_;
  View scratch_;
  bool rehearsing_ = false;
  std::size_t peak_ = 0;
};

}  // namespace squareq::cuda
