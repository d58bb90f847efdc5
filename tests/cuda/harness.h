// Tensors that live on the CPU in float32 and on the GPU in a type of choice, to run both backends on the same numbers.
// Without a GPU these tests are skipped, and say so.
#pragma once

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/error.h"
#include "kernels/device.h"
#include "tests/catch.h"
#include "tests/support.h"

namespace squareq::test {

// Unit round-off of bfloat16: 8 significant bits, round to nearest. An input or output rounded once is off by at most
// this share, by 0.58 of it (uniform error) in the relative L2 norm.
inline constexpr double kBf16 = 1.0 / 256.0;

// The GPU, or null after saying that there is none.
inline Device* gpu() {
  static const std::unique_ptr<Device> device = [] {
    try {
      return make_cuda_device();
    } catch (const ConfigError& e) {
      WARN("SKIPPED: " << e.what());
      return std::unique_ptr<Device>();
    }
  }();
  return device.get();
}

// Random [batch, rows, cols], rounded to `dtype`: the same numbers in both places. With `pad`, both views are slices of
// larger tensors.
class Twin {
 public:
  Twin(std::int64_t batch, std::int64_t rows, std::int64_t cols, std::uint32_t stream, DType dtype = DType::BF16,
       std::int64_t pad = 0, float standard_deviation = 1.0F)
      : pad_(pad) {
    const std::int64_t all_rows = rows + pad, all_cols = cols + pad;
    host_.resize(static_cast<std::size_t>(batch * all_rows * all_cols));
    fill_random(host_, stream, standard_deviation);
    const auto count = static_cast<std::int64_t>(host_.size());
    bytes_.resize(host_.size() * size_of(dtype));
    from_f32(host_.data(), dtype, bytes_.data(), count);
    to_f32(bytes_.data(), dtype, host_.data(), count);
    all_ = View(nullptr, dtype, batch, all_rows, all_cols);
    memory_ = gpu()->allocate(all_.bytes());
    all_.data = memory_.get();
    gpu()->upload(bytes_.data(), all_);
    cpu = slice(View(reinterpret_cast<std::byte*>(host_.data()), DType::F32, batch, all_rows, all_cols));
    cuda = slice(all_);
  }

  // Relative L2 distance of the GPU's values from the CPU's; infinity where a value beside the view changed or one
  // inside is not finite.
  double error() {
    std::vector<std::byte> now(bytes_.size());
    gpu()->download(all_, now.data());
    std::vector<float> values(host_.size()), before(host_.size());
    to_f32(now.data(), all_.dtype, values.data(), static_cast<std::int64_t>(values.size()));
    to_f32(bytes_.data(), all_.dtype, before.data(), static_cast<std::int64_t>(values.size()));
    double difference = 0.0, norm = 0.0;
    for (std::int64_t b = 0; b < all_.batch; ++b) {
      for (std::int64_t r = 0; r < all_.rows; ++r) {
        for (std::int64_t c = 0; c < all_.cols; ++c) {
          const auto i = static_cast<std::size_t>((b * all_.rows + r) * all_.cols + c);
          const bool inside = r >= pad_ / 2 && r < pad_ / 2 + cuda.rows && c >= pad_ / 2 && c < pad_ / 2 + cuda.cols;
          if (!inside && values[i] != before[i]) return std::numeric_limits<double>::infinity();
          if (!inside) continue;
          const double d = static_cast<double>(values[i]) - static_cast<double>(host_[i]);
          difference += d * d;
          norm += static_cast<double>(host_[i]) * static_cast<double>(host_[i]);
        }
      }
    }
    const double e = std::sqrt(norm > 0.0 ? difference / norm : difference);
    return std::isfinite(e) ? e : std::numeric_limits<double>::infinity();
  }

  View cpu, cuda;
  const View& all() const { return all_; }  // the tensor of which `cuda` is a slice

 private:
  View slice(const View& all) const {
    return all.row_slice(pad_ / 2, all.rows - pad_).col_slice(pad_ / 2, all.cols - pad_);
  }

  std::int64_t pad_;
  std::vector<float> host_;
  std::vector<std::byte> bytes_;
  Buffer memory_;
  View all_;
};

// Runs `calls` with a device's operations, with as much scratch memory as they say they need.
template <class Calls>
void on_device(Device& device, Calls calls) {
  Ops& ops = device.ops();
  const std::size_t need = ops.scratch_need([&] { calls(ops); });
  const Buffer memory = device.allocate(need);
  ops.use_scratch(View(memory.get(), DType::U8, 1, 1, static_cast<std::int64_t>(need)));
  calls(ops);
  ops.use_scratch({});
  device.synchronize();  // the scratch memory has to outlive the work
}

template <class Calls>
void on_gpu(Calls calls) {
  on_device(*gpu(), calls);
}

// Gives the branches on a linear with `out` outputs their stacks, in the memory that is returned.
inline Buffer stack_on_gpu(std::span<LoraBranch> lora, std::int64_t out) {
  Carver measure;
  take_stacks(measure, lora, DType::BF16, out);
  Buffer memory = gpu()->allocate(measure.used());
  Carver carver(memory.get(), measure.used());
  take_stacks(carver, lora, DType::BF16, out);
  on_gpu([&](Ops& ops) { ops.stack_adapters(lora); });
  return memory;
}

inline Ops& cpu_ops() {
  static const std::unique_ptr<Ops> ops = make_cpu_ops();
  return *ops;
}

}  // namespace squareq::test
