#include "apps/bench/attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "apps/bench/device_tensor.h"
#include "apps/bench/measure.h"
#include "kernels/base/error.h"

namespace squareq::bench {
namespace {

enum Name : std::size_t { kQ, kK, kV, kDo, kO, kDq, kDk, kDv, kNames };
constexpr std::size_t kInputs = kO;
constexpr std::array<const char*, kNames> kNameTexts{"q", "k", "v", "do", "o", "dq", "dk", "dv"};

struct Implementation {
  const char* name;
  DeviceOptions options;

  bool deterministic() const { return options.deterministic || options.attention == DeviceOptions::Kernels::kPortable; }
};

const std::array<Implementation, 3>& implementations() {
  using Kernels = DeviceOptions::Kernels;
  static const std::array<Implementation, 3> all{
      {{"portable", {.attention = Kernels::kPortable}},
       {"cudnn", {.attention = Kernels::kCudnn, .deterministic = false}},
       {"cudnn, deterministic", {.attention = Kernels::kCudnn, .deterministic = true}}}};
  return all;
}

// q, k, v and do, [tokens, heads * features]: numbers that bfloat16 can hold.
using Inputs = std::array<std::vector<float>, kInputs>;

Inputs random_inputs(std::int64_t count) {
  Inputs inputs;
  for (std::size_t i = 0; i < kInputs; ++i) {
    inputs[i] = random_floats(count, static_cast<std::uint32_t>(i));
    std::vector<std::byte> rounded(inputs[i].size() * size_of(DType::BF16));
    from_f32(inputs[i].data(), DType::BF16, rounded.data(), count);
    to_f32(rounded.data(), DType::BF16, inputs[i].data(), count);
  }
  return inputs;
}

// One call of attention and one of its backward on a device, with their memory: a row holds all eight tensors.
class Problem {
 public:
  Problem(Device& device, std::int64_t tokens, std::int64_t heads, std::int64_t features, DType dtype)
      : device_(device), heads_(heads), scale_(1.0F / std::sqrt(static_cast<float>(features))) {
    const std::int64_t cols = heads * features;
    const View all = allocate(dtype, tokens, std::int64_t{kNames} * cols);
    for (std::size_t i = 0; i < kNames; ++i) tensors_[i] = all.col_slice(static_cast<std::int64_t>(i) * cols, cols);
    log_sum_exp_ = allocate(DType::F32, heads, tokens);
    const std::size_t need = device.ops().scratch_need([&] {
      forward();
      backward();
    });
    device.ops().use_scratch(allocate(DType::U8, 1, static_cast<std::int64_t>(need)));
  }
  ~Problem() {
    device_.synchronize();
    device_.ops().use_scratch({});
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  const View& operator[](Name name) const { return tensors_[name]; }

  void forward() {
    device_.ops().attention({.q = tensors_[kQ],
                             .k = tensors_[kK],
                             .v = tensors_[kV],
                             .heads = heads_,
                             .scale = scale_,
                             .o = tensors_[kO],
                             .log_sum_exp = log_sum_exp_});
  }
  void backward() {
    device_.ops().attention_backward({.d_o = tensors_[kDo],
                                      .q = tensors_[kQ],
                                      .k = tensors_[kK],
                                      .v = tensors_[kV],
                                      .o = tensors_[kO],
                                      .log_sum_exp = log_sum_exp_,
                                      .heads = heads_,
                                      .scale = scale_,
                                      .dq = tensors_[kDq],
                                      .dk = tensors_[kDk],
                                      .dv = tensors_[kDv]});
  }

  // Their first columns, as many as this problem has.
  void set_inputs(const Inputs& inputs, std::int64_t input_cols) {
    const View& q = tensors_[kQ];
    const View packed = allocate(DType::F32, q.rows, input_cols);
    for (std::size_t i = 0; i < kInputs; ++i) {
      device_.upload(inputs[i].data(), packed);
      device_.ops().copy(packed.col_slice(0, q.cols), tensors_[i], Accumulate::kNo);
    }
  }
  std::vector<float> values(Name name, std::int64_t cols) {
    const View packed = allocate(DType::F32, tensors_[name].rows, cols);
    device_.ops().copy(tensors_[name].col_slice(0, cols), packed, Accumulate::kNo);
    return values_of(device_, packed);
  }

 private:
  View allocate(DType dtype, std::int64_t rows, std::int64_t cols) {
    memory_.push_back(device_.allocate(static_cast<std::size_t>(rows * cols) * size_of(dtype)));
    return {memory_.back().get(), dtype, 1, rows, cols};
  }

  Device& device_;
  std::int64_t heads_;
  float scale_;
  std::vector<Buffer> memory_;
  std::array<View, kNames> tensors_;
  View log_sum_exp_;
};

double distance(const std::vector<float>& values, const std::vector<float>& reference) {
  double difference = 0.0, norm = 0.0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double d = static_cast<double>(values[i]) - static_cast<double>(reference[i]);
    difference += d * d;
    norm += static_cast<double>(reference[i]) * static_cast<double>(reference[i]);
  }
  return std::sqrt(difference / norm);
}

// Median TFLOP/s by the device's own clock, of several calls at a time: so that it waits for none of them.
double rate(Device& device, int repeats, const std::function<void()>& call) {
  constexpr int kCalls = 8;
  std::vector<double> rates;
  call();
  for (int i = 0; i < repeats; ++i) {
    const KernelTimes times = device.profile([&] {
      for (int c = 0; c < kCalls; ++c) call();
    });
    const FamilyTime& time = times[static_cast<std::size_t>(KernelFamily::kAttention)];
    rates.push_back(time.work / time.seconds * 1e-12);
  }
  return median(std::move(rates));
}

constexpr std::array<Name, 4> kResults{kO, kDq, kDk, kDv};
constexpr std::int64_t kCheckedHeads = 2;
using Results = std::array<std::vector<float>, kResults.size()>;

Results results_of(Problem& problem, std::int64_t cols) {
  Results results;
  for (std::size_t i = 0; i < kResults.size(); ++i) results[i] = problem.values(kResults[i], cols);
  return results;
}

Results reference(const AttentionOptions& o, std::int64_t tokens, const Inputs& inputs) {
  const std::unique_ptr<Device> cpu = make_cpu_device(o.threads);
  const std::int64_t heads = std::min(kCheckedHeads, o.heads);
  Problem problem(*cpu, tokens, heads, o.features, DType::F32);
  problem.set_inputs(inputs, o.heads * o.features);
  problem.forward();
  problem.backward();
  return results_of(problem, heads * o.features);
}

nlohmann::json measure(Device& device, const AttentionOptions& o, std::int64_t tokens, const Inputs& inputs,
                       const Results& expected) {
  const std::int64_t cols = o.heads * o.features;
  Problem problem(device, tokens, o.heads, o.features, DType::BF16);
  problem.set_inputs(inputs, cols);
  const double forward = rate(device, o.repeats, [&] { problem.forward(); });
  const double backward = rate(device, o.repeats, [&] { problem.backward(); });
  nlohmann::json result{{"tokens", tokens}, {"forward_tflops", forward}, {"backward_tflops", backward}};
  const Results found = results_of(problem, static_cast<std::int64_t>(expected[0].size()) / tokens);
  for (std::size_t i = 0; i < kResults.size(); ++i) {
    result["errors"][kNameTexts[kResults[i]]] = distance(found[i], expected[i]);
  }
  const std::vector<float> first = problem.values(kDq, cols);
  bool repeats = true;
  for (int i = 0; i < 3; ++i) {
    problem.backward();
    repeats = repeats && problem.values(kDq, cols) == first;
  }
  result["repeats"] = repeats;
  return result;
}

// Twice the unit round-off of bfloat16, to which results, and probabilities on their way, are rounded.
constexpr double kErrorLimit = 2.0 / 256.0;

bool passes(const nlohmann::json& row, const Implementation& implementation) {
  const auto small = [](const nlohmann::json& error) { return error.get<double>() <= kErrorLimit; };  // false for NaN
  return std::all_of(row["errors"].begin(), row["errors"].end(), small) &&
         (row["repeats"].get<bool>() || !implementation.deterministic());
}

void print(const nlohmann::json& r, const char* name) {
  const auto& errors = r["errors"];
  fmt::print("{:>6} {:<22} {:8.0f} {:8.0f}   {:.1e} {:.1e} {:.1e} {:.1e}   {}\n", r["tokens"].get<std::int64_t>(), name,
             r["forward_tflops"].get<double>(), r["backward_tflops"].get<double>(), errors["o"].get<double>(),
             errors["dq"].get<double>(), errors["dk"].get<double>(), errors["dv"].get<double>(),
             r["repeats"].get<bool>() ? "yes" : "no");
}

}  // namespace

int run_attention(const AttentionOptions& o) {
  nlohmann::json rows = nlohmann::json::array();
  bool passed = true;
  if (!o.json) {
    fmt::print("{} heads of {}; TFLOP/s, median of {}; errors against float32\n", o.heads, o.features, o.repeats);
    fmt::print("{:>6} {:<22} {:>8} {:>8}   {:<7} {:<7} {:<7} {:<7}   same bits\n", "tokens", "implementation",
               "forward", "backward", "o", "dq", "dk", "dv");
  }
  for (const std::int64_t tokens : o.tokens) {
    const Inputs inputs = random_inputs(tokens * o.heads * o.features);
    const Results expected = reference(o, tokens, inputs);
    for (const Implementation& i : implementations()) {
      std::unique_ptr<Device> device;
      try {
        device = make_cuda_device(i.options);
      } catch (const ConfigError& e) {
        if (i.options.attention == DeviceOptions::Kernels::kPortable) throw;
        fmt::print(stderr, "{}: {}\n", i.name, e.what());
        continue;
      }
      nlohmann::json row = measure(*device, o, tokens, inputs, expected);
      if (!o.json) print(row, i.name);
      passed = passed && passes(row, i);
      row["implementation"] = i.name;
      row["choices"] = device->choices();
      rows.push_back(std::move(row));
    }
  }
  if (o.json) fmt::print("{}\n", rows.dump(1));
  return passed ? 0 : 1;
}

}  // namespace squareq::bench
