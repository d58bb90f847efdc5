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

// In 10^12 operations per second; 0 where there is no such kernel.
struct LayerRates {
  double layer = 0.0;     // with the weight as it is stored
  double prepared = 0.0;  // with a copy of it that was expanded or transposed beforehand, where that is of use
  double product = 0.0;   // the fused one alone
  double library = 0.0;   // cuBLASLt's
};

// A device that computes in one precision, with operands for the largest layer.
class LayerTimer {
 public:
  LayerTimer(const SpeedOptions& options, Precision precision)
      : device_(open_device(options.device, options.threads, with(options.compute, precision))),
        int8_(precision == Precision::kW8A8),
        repeats_(options.repeats),
        values_(upload_int8(*device_, kMostWeights, 1)),
        prepared_(device_->allocate(kMostWeights * 2)),
        scales_(device_->allocate(kMostWidth * sizeof(float))),
        bias_(upload_bf16(*device_, kMostWidth, 2)),
        input_(upload_bf16(*device_, kMostRows * kMostWidth, 3)),
        output_(device_->allocate(kMostRows * kMostWidth * 2)),
        tuning_(device_->allocate(kTuning)) {
    device_->ops().fill(View(scales_.get(), DType::F32, 1, 1, kMostWidth), 0.001F);
  }

  // Rates of one pass, y = x W^T + b or dx = dy W, of its product, and of cuBLASLt's.
  LayerRates rates(const Layer& layer, std::int64_t rows, bool backward) {
    const Weight stored{.codec = Codec::kInt8Rows,
                        .values = View(values_.get(), DType::I8, 1, layer.out, layer.in),
                        .scales = View(scales_.get(), DType::F32, 1, 1, layer.out),
                        .bias = View(bias_.get(), DType::BF16, 1, 1, layer.out)};
    Ops& ops = device_->ops();
    Weight prepared = stored;
    if (View copy = ops.prepared_form(stored); copy.cols > 0) {
      copy.data = prepared_.get();
      ops.prepare(stored, copy);
      prepared.prepared = copy;
    }

    const View in(input_.get(), DType::BF16, 1, rows, backward ? layer.out : layer.in);
    const View out(output_.get(), DType::BF16, 1, rows, backward ? layer.in : layer.out);
    const auto pass = [&](const Weight& weight) {
      if (backward) {
        ops.linear_backward({.dy = in, .x = {}, .weight = weight, .lora = {}, .u = {}, .dx = out});
      } else {
        ops.linear({.x = in, .weight = weight, .lora = {}, .y = out});
      }
    };
    const std::size_t need = ops.scratch_need([&] { pass(stored); });
    ops.tune(View(tuning_.get(), DType::U8, 1, 1, static_cast<std::int64_t>(kTuning)));
    const Buffer scratch = device_->allocate(need);
    ops.use_scratch(View(scratch.get(), DType::U8, 1, 1, static_cast<std::int64_t>(need)));
    // The backward of w8a8 multiplies by a transposed copy, that of w8a16 by the weight as it lies.
    const ProductTimes times = time_cuda_product(
        {.int8 = int8_, .b_transposed = int8_ || !backward, .m = rows, .n = out.cols, .k = in.cols}, repeats_,
        {[&] { return seconds([&] { pass(stored); }); }, [&] { return seconds([&] { pass(prepared); }); }});
    ops.use_scratch({});
    const auto rate = [work = 2e-12 * static_cast<double>(rows * layer.out * layer.in)](double seconds) {
      return seconds > 0.0 ? work / seconds : 0.0;
    };
    return {.layer = rate(times.others[0]),
            .prepared = rate(times.others[1]),
            .product = rate(times.fused),
            .library = rate(times.library)};
  }

 private:
  static constexpr std::size_t kTuning = std::size_t{1} << 30U;

  static DeviceOptions with(DeviceOptions options, Precision precision) {
    options.precision = precision;
    return options;
  }
  // Of one of several calls in a row.
  double seconds(const auto& pass) {
    Transfers& transfers = device_->transfers();
    const std::unique_ptr<Event> begin = transfers.make_event(true), end = transfers.make_event(true);
    transfers.record(*begin, Stream::kCompute);
    for (int i = 0; i < kProductsInARow; ++i) pass();
    transfers.record(*end, Stream::kCompute);
    device_->synchronize();
    return transfers.seconds(*begin, *end) / kProductsInARow;
  }

  std::unique_ptr<Device> device_;
  bool int8_;
  int repeats_;
  Buffer values_, prepared_, scales_, bias_, input_, output_, tuning_;
};

int run_gpu_table(const SpeedOptions& options) {
  LayerTimer w8a8(options, Precision::kW8A8), w8a16(options, Precision::kW8A16);
  nlohmann::json json = nlohmann::json::array();
  if (!options.json) {
    fmt::print(
        "10^12 operations per second: the layer, with a weight prepared beforehand, the fused product alone, the "
        "fastest of cuBLASLt\n");
    fmt::print("{:<8} {:>5} {:<8} {:>29} {:>30}\n", "layer", "rows", "pass", "w8a8", "w8a16");
  }
  const auto json_of = [](const LayerRates& r) {
    return nlohmann::json{
        {"layer", r.layer}, {"prepared", r.prepared}, {"product", r.product}, {"cublaslt", r.library}};
  };
  const auto text_of = [](const LayerRates& r) {
    return fmt::format("{:>8.0f}{:>7.0f}{:>7.0f}{:>7.0f}", r.layer, r.prepared, r.product, r.library);
  };
  for (const std::int64_t rows : kRows) {
    for (const Layer& layer : kLayers) {
      for (const bool backward : {false, true}) {
        const char* pass = backward ? "backward" : "forward";
        const LayerRates a = w8a8.rates(layer, rows, backward), b = w8a16.rates(layer, rows, backward);
        json.push_back(
            {{"layer", layer.name}, {"rows", rows}, {"pass", pass}, {"w8a8", json_of(a)}, {"w8a16", json_of(b)}});
        if (options.json) continue;
        fmt::print("{:<8} {:>5} {:<8} {}  {}\n", layer.name, rows, pass, text_of(a), text_of(b));
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
