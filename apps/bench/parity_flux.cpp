#include <algorithm>
#include <cmath>
#include <map>

#include "apps/bench/device_tensor.h"
#include "apps/bench/parity.h"
#include "apps/bench/temporary.h"
#include "engine/flux_engine.h"
#include "engine/schedule.h"
#include "io/checkpoint.h"
#include "io/slab_build.h"
#include "kernels/base/error.h"

namespace squareq::bench {
namespace {

// AdamW run of the recorded file: learning rate 1e-2, the optimizer's other settings at their usual values, clipping
// at 1.
constexpr double kAdamRate = 1e-2;
constexpr int kAdamSteps = 5;

class FluxParity {
 public:
  FluxParity(const ParityOptions& options, const SafetensorsFile& io, Device& device)
      : options_(options), io_(io), device_(device), checkpoint_(Checkpoint::open(options.model, Model::kTransformer)) {
    shape_ = flux_shape(checkpoint_, read_config(options.config));
    batch_ = io.get("img").shape.at(0);
    sequence_.text = io.get("txt").shape.at(1);
    const std::int64_t image = io.get("img").shape.at(1);
    sequence_.image = io.find("target") != nullptr ? io.get("target").shape.at(1) : image;
    sequence_.reference = image - sequence_.image;
    for (const char* name : {"txt_ids", "img_ids"}) append_positions(name);
  }

  std::vector<Comparison> run() {
    if (io_.find("out.float") != nullptr || has_prefix("tap.float.")) run_float();
    if (!options_.float_only && (io_.find("out.int8") != nullptr || has_prefix("lora."))) run_int8();
    return std::move(list_);
  }

 private:
  bool has_prefix(const std::string& prefix) const {
    return std::any_of(io_.tensors().begin(), io_.tensors().end(),
                       [&](const TensorInfo& t) { return t.name.starts_with(prefix); });
  }

  // ids [tokens, 3] or [batch, tokens, 3]; positions are common to the batch.
  void append_positions(const char* name) {
    const std::vector<float> ids = io_.read_f32(name);
    const std::vector<std::int64_t>& shape = io_.get(name).shape;
    const auto tokens = static_cast<std::size_t>(shape.at(shape.size() - 2));
    for (std::size_t t = 0; t < tokens; ++t) {
      sequence_.positions.push_back({ids.at(3 * t), ids.at(3 * t + 1), ids.at(3 * t + 2)});
    }
  }

  // The engine computes as many output tokens as the reference recorded.
  FluxRun run_for(const std::string& output, std::vector<LoraTarget> lora, flux::Wanted wanted) const {
    FluxRun run{.batch = batch_, .sequences = {sequence_}, .wanted = wanted, .lora = std::move(lora)};
    run.sequences.front().output = io_.find(output) != nullptr ? io_.get(output).shape.at(1) : sequence_.image;
    run.keep = wanted.gradients ? Keep::kCheckpoint : Keep::kAll;
    return run;
  }

  void set_inputs(FluxEngine& engine) const {
    flux::State& s = engine.state();
    device_.upload(io_.read_f32("img").data(), s.img);
    device_.upload(io_.read_f32("txt").data(), s.txt);
    device_.upload(io_.read_f32("y").data(), s.y);
    s.sigma = io_.read_f32("timesteps");
    if (io_.find("guidance") != nullptr) s.guidance = io_.read_f32("guidance");
  }

  std::vector<float> values(const View& view) const { return values_of(device_, view); }

  void check(const std::string& name, const std::vector<float>& value, double limit) {
    list_.push_back(compare(name, value, io_.read_f32(name), options_.limit(limit)));
  }

  void run_float() {
    const TemporaryFile file("float.slab");
    build_slab(checkpoint_, shape_, file.path(), {.codec = Codec::kFloat, .threads = options_.threads});
    const Slab slab(file.path());
    // Gradients are not wanted, but the residual stream of every block is: taps are taken from it.
    FluxEngine engine(device_, slab, run_for("out.float", {}, {.gradients = true}));
    set_inputs(engine);
    engine.forward();
    const flux::State& s = engine.state();
    for (std::int64_t i = 0; i < s.blocks(); ++i) {
      const View x = s.x[static_cast<std::size_t>(i) + 1];
      if (i < shape_.double_blocks) {
        const std::string tap = "tap.float.double." + std::to_string(i);
        if (io_.find(tap + ".txt") != nullptr)
          check(tap + ".txt", values(x.row_slice(0, sequence_.text)), kOutputLimit);
        if (io_.find(tap + ".img") != nullptr) {
          check(tap + ".img", values(x.row_slice(sequence_.text, x.rows - sequence_.text)), kOutputLimit);
        }
      } else {
        const std::string tap = "tap.float.single." + std::to_string(i - shape_.double_blocks);
        if (io_.find(tap) != nullptr) check(tap, values(x), kOutputLimit);
      }
    }
    if (io_.find("out.float") != nullptr) check("out.float", engine.prediction(), kOutputLimit);
  }

  void run_int8() {
    const TemporaryFile file("int8.slab");
    build_slab(checkpoint_, shape_, file.path(), {.codec = Codec::kInt8Rows, .threads = options_.threads});
    const Slab slab(file.path());
    if (io_.find("out.int8") != nullptr) {
      FluxEngine engine(device_, slab, run_for("out.int8", {}, {}));
      set_inputs(engine);
      engine.forward();
      check("out.int8", engine.prediction(), kOutputLimit);
    }
    if (has_prefix("lora.")) run_lora(slab);
  }

  double metadata_number(const char* key) const {
    const auto found = io_.metadata().find(key);
    if (found == io_.metadata().end()) {
      throw FormatError(
          {.where = io_.path() + ": metadata", .found = "no '" + std::string(key) + "'", .expected = "a number"});
    }
    return std::stod(found->second);
  }

  std::vector<LoraTarget> recorded_adapters() const {
    std::vector<LoraTarget> targets;
    const double alpha = metadata_number("lora_alpha");
    for (const flux::LinearShape& linear : flux::linears(shape_)) {
      const TensorInfo* a = io_.find("lora." + linear.name + ".A");
      if (a == nullptr) continue;
      const std::int64_t rank = a->shape.at(0);
      targets.push_back({.linear = linear.name,
                         .rows = linear.out,
                         .in = linear.in,
                         .out = linear.out,
                         .rank = rank,
                         .scale = alpha / static_cast<double>(rank)});
    }
    return targets;
  }

  void set_adapters(FluxEngine& engine) const {
    LoraSet& lora = engine.lora();
    for (std::size_t i = 0; i < lora.targets().size(); ++i) {
      const LoraTarget& t = lora.targets()[i];
      device_.upload(io_.read_f32("lora." + t.linear + ".A", {t.rank, t.in}).data(), lora.a(i));
      device_.upload(io_.read_f32("lora." + t.linear + ".B", {t.rows, t.rank}).data(), lora.b(i));
    }
  }

  // Forward, loss over the noisy image tokens, backward.
  double loss_and_gradients(FluxEngine& engine) const {
    flux::State& s = engine.state();
    const DeviceTensor target(device_, batch_, sequence_.image, s.prediction.cols);
    device_.upload(io_.read_f32("target").data(), target.view);
    std::vector<float> each(static_cast<std::size_t>(batch_));
    const std::vector<float> weights(each.size(), 1.0F / static_cast<float>(batch_));
    engine.zero_gradients();
    engine.forward();
    device_.ops().fill(s.dprediction, 0.0F);
    device_.ops().flow_loss({.prediction = s.prediction.row_slice(0, sequence_.image),
                             .target = target.view,
                             .gradient_weight = weights,
                             .loss = each,
                             .dprediction = s.dprediction.row_slice(0, sequence_.image)});
    engine.backward();
    double loss = 0.0;
    for (const float l : each) loss += static_cast<double>(l) / static_cast<double>(batch_);
    return loss;
  }

  void check_adapters(FluxEngine& engine, const std::string& prefix, bool gradients, double limit) {
    const LoraSet& lora = engine.lora();
    for (std::size_t i = 0; i < lora.targets().size(); ++i) {
      const std::string name = prefix + lora.targets()[i].linear;
      if (io_.find(name + ".A") == nullptr) continue;
      check(name + ".A", values(gradients ? lora.da(i) : lora.a(i)), limit);
      check(name + ".B", values(gradients ? lora.db(i) : lora.b(i)), limit);
    }
  }

  void run_lora(const Slab& slab) {
    FluxEngine engine(device_, slab,
                      run_for("out.int8_lora", recorded_adapters(), {.gradients = true, .input_gradients = true}));
    set_inputs(engine);
    set_adapters(engine);
    const double loss = loss_and_gradients(engine);
    if (io_.find("out.int8_lora") != nullptr) check("out.int8_lora", engine.prediction(), kGradientLimit);
    if (io_.find("loss.int8_lora") != nullptr) check("loss.int8_lora", {static_cast<float>(loss)}, kOutputLimit);
    check_adapters(engine, "grad.", true, kGradientLimit);
    const flux::State& s = engine.state();
    for (const auto& [name, view] : {std::pair{"grad.img", s.dimg}, {"grad.txt", s.dtxt}, {"grad.y", s.dy}}) {
      if (io_.find(name) != nullptr) check(name, values(view), kGradientLimit);
    }
    if (io_.find("adamw.loss_and_gradnorm") != nullptr) run_adamw(engine);
  }

  void run_adamw(FluxEngine& engine) {
    set_adapters(engine);
    Ops& ops = device_.ops();
    LoraSet& lora = engine.lora();
    std::vector<float> history;
    for (int step = 1; step <= kAdamSteps; ++step) {
      history.push_back(static_cast<float>(loss_and_gradients(engine)));
      const double norm = std::sqrt(ops.sum_of_squares(lora.gradients()));
      history.push_back(static_cast<float>(norm));
      AdamW update = lora.adamw();
      update.gradient_scale = static_cast<float>(clip_factor(norm, 1.0));
      update.learning_rate = static_cast<float>(kAdamRate);
      update.step = step;
      ops.adamw(update);
    }
    check("adamw.loss_and_gradnorm", history, kOutputLimit);
    check_adapters(engine, "adamw.", false, kAdamLimit);
  }

  const ParityOptions& options_;
  const SafetensorsFile& io_;
  Device& device_;
  Checkpoint checkpoint_;
  FluxShape shape_;
  std::int64_t batch_ = 0;
  Sequence sequence_;
  std::vector<Comparison> list_;
};

}  // namespace

std::vector<Comparison> flux_parity(const ParityOptions& options, const SafetensorsFile& io, Device& device) {
  return FluxParity(options, io, device).run();
}

}  // namespace squareq::bench
