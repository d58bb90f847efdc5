#include "apps/bench/gemm.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "apps/bench/measure.h"
#include "engine/pipeline.h"
#include "kernels/product_times.h"

namespace squareq::bench {
namespace {

using Precision = DeviceOptions::Precision;

struct Layer {
  const char* name;
  std::int64_t out, in;
};
constexpr Layer kLayers[] = {{"qkv", 9216, 3072},      {"proj", 3072, 3072},     {"mlp in", 12288, 3072},
                             {"mlp out", 3072, 12288}, {"linear1", 21504, 3072}, {"linear2", 3072, 15360}};
constexpr std::int64_t kRows[] = {512, 4096, 4608}, kMostRows = 4608;
constexpr std::int64_t kMostWidth = 21504, kMostWeights = 21504 * 3072;

// Random values of any type, a short sequence repeated.
template <class T>
Buffer upload_random(Device& device, DType dtype, std::int64_t count, std::uint32_t stream, T convert) {
  constexpr std::int64_t kPeriod = (1 << 20) - 3;
  const std::vector<float> period = random_floats(kPeriod, stream);
  const auto element = static_cast<std::int64_t>(size_of(dtype));
  std::vector<std::byte> bytes(static_cast<std::size_t>(count * element));
  for (std::int64_t i = 0; i < count; i += kPeriod)
    convert(period.data(), bytes.data() + i * element, std::min(kPeriod, count - i));
  Buffer memory = device.allocate(bytes.size());
  device.upload(bytes.data(), View(memory.get(), dtype, 1, 1, count));
  return memory;
}
Buffer upload_bf16(Device& device, std::int64_t count, std::uint32_t stream) {
  return upload_random(device, DType::BF16, count, stream,
                       [](const float* from, std::byte* to, std::int64_t n) { from_f32(from, DType::BF16, to, n); });
}
Buffer upload_int8(Device& device, std::int64_t count, std::uint32_t stream) {
  return upload_random(device, DType::I8, count, stream, [](const float* from, std::byte* to, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i)
      to[i] = static_cast<std::byte>(static_cast<std::int8_t>(std::clamp(30.0F * from[i], -127.0F, 127.0F)));
  });
}

// A device that computes in one precision, with operands for the largest layer.
class LayerTimer {
 public:
  LayerTimer(const SpeedOptions& options, Precision precision)
      : device_(open_device(options.device, options.threads, with(options.compute, precision))),
        repeats_(options.repeats),
        values_(upload_int8(*device_, kMostWeights, 1)),
        scales_(device_->allocate(kMostWidth * sizeof(float))),
        bias_(upload_bf16(*device_, kMostWidth, 2)),
        input_(upload_bf16(*device_, kMostRows * kMostWidth, 3)),
        output_(device_->allocate(kMostRows * kMostWidth * 2)) {
    device_->ops().fill(View(scales_.get(), DType::F32, 1, 1, kMostWidth), 0.001F);
  }

  // Of one pass: y = x W^T + b, or dx = dy W.
  double seconds(const Layer& layer, std::int64_t rows, bool backward) {
    const Weight weight{.codec = Codec::kInt8Rows,
                        .values = View(values_.get(), DType::I8, 1, layer.out, layer.in),
                        .scales = View(scales_.get(), DType::F32, 1, 1, layer.out),
                        .bias = View(bias_.get(), DType::BF16, 1, 1, layer.out)};
    const View in(input_.get(), DType::BF16, 1, rows, backward ? layer.out : layer.in);
    const View out(output_.get(), DType::BF16, 1, rows, backward ? layer.in : layer.out);
    Ops& ops = device_->ops();
    const auto pass = [&] {
      if (backward) {
        ops.linear_backward({.dy = in, .x = {}, .weight = weight, .lora = {}, .u = {}, .dx = out});
      } else {
        ops.linear({.x = in, .weight = weight, .lora = {}, .y = out});
      }
    };
    const std::size_t need = ops.scratch_need(pass);
    const Buffer scratch = device_->allocate(need);
    ops.use_scratch(View(scratch.get(), DType::U8, 1, 1, static_cast<std::int64_t>(need)));
    constexpr int kInARow = 10;  // so that the clock's and the launches' own time do not count
    const double time = median_seconds(
        repeats_,
        [&] {
          for (int i = 0; i < kInARow; ++i) pass();
        },
        device_.get());
    ops.use_scratch({});
    return time / kInARow;
  }

 private:
  static DeviceOptions with(DeviceOptions options, Precision precision) {
    options.precision = precision;
    return options;
  }

  std::unique_ptr<Device> device_;
  int repeats_;
  Buffer values_, scales_, bias_, input_, output_;
};

// In 10^12 operations per second; 0 stands for none.
struct Rates {
  double layer = 0.0, product = 0.0, library = 0.0;
};

Rates measure(LayerTimer& timer, Precision precision, const Layer& layer, std::int64_t rows, bool backward,
              int repeats) {
  // The backward of w8a8 multiplies by a transposed copy, that of w8a16 by the weight as it lies.
  const bool int8 = precision == Precision::kW8A8;
  const ProductTimes product = time_cuda_product({.int8 = int8,
                                                  .b_transposed = int8 || !backward,
                                                  .m = rows,
                                                  .n = backward ? layer.in : layer.out,
                                                  .k = backward ? layer.out : layer.in},
                                                 repeats);
  const auto work = 2e-12 * static_cast<double>(rows * layer.out * layer.in);
  return {.layer = work / timer.seconds(layer, rows, backward),
          .product = product.fused > 0.0 ? work / product.fused : 0.0,
          .library = work / product.library};
}

int run_gpu_table(const SpeedOptions& options) {
  LayerTimer w8a8(options, Precision::kW8A8), w8a16(options, Precision::kW8A16);
  nlohmann::json json = nlohmann::json::array();
  if (!options.json) {
    fmt::print("10^12 operations per second; the layer, the product inside, the fastest of cuBLASLt\n");
    fmt::print("{:<8} {:>5} {:<8} {:>22} {:>23}\n", "layer", "rows", "pass", "w8a8", "w8a16");
  }
  for (const std::int64_t rows : kRows) {
    for (const Layer& layer : kLayers) {
      for (const bool backward : {false, true}) {
        const char* pass = backward ? "backward" : "forward";
        const Rates a = measure(w8a8, Precision::kW8A8, layer, rows, backward, options.repeats);
        const Rates b = measure(w8a16, Precision::kW8A16, layer, rows, backward, options.repeats);
        json.push_back({{"layer", layer.name},
                        {"rows", rows},
                        {"pass", pass},
                        {"w8a8", {{"layer", a.layer}, {"product", a.product}, {"cublaslt", a.library}}},
                        {"w8a16", {{"layer", b.layer}, {"product", b.product}, {"cublaslt", b.library}}}});
        if (options.json) continue;
        fmt::print("{:<8} {:>5} {:<8} {:>8.0f}{:>7.0f}{:>7.0f}  {:>8.0f}{:>7.0f}{:>7.0f}\n", layer.name, rows, pass,
                   a.layer, a.product, a.library, b.layer, b.product, b.library);
      }
    }
  }
  if (options.json) fmt::print("{}\n", json.dump(1));
  return 0;
}

}  // namespace

int run_gemm(std::int64_t n, const SpeedOptions& options) {
  if (!open_device(options.device, options.threads, options.compute)->reads_host_memory()) {
    return run_gpu_table(options);
  }
  const double rate = gemm_rate(n, options.threads, options.repeats);
  if (options.json) {
    fmt::print("{}\n", nlohmann::json{{"n", n}, {"gflops", rate}}.dump());
  } else {
    fmt::print("OpenBLAS sgemm {0} x {0} x {0}: {1:.1f} GFLOP/s (median of {2})\n", n, rate, options.repeats);
  }
  return 0;
}

}  // namespace squareq::bench
