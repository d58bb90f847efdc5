#include "engine/trainer.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numbers>

#include "engine/lora_targets.h"
#include "engine/saved_lora.h"
#include "kernels/base/error.h"
#include "kernels/base/random.h"

namespace squareq {
namespace {

TimestepSettings timestep_settings(const TrainingConfig& c, const ScheduleShift& shift) {
  const auto kind = [&] {
    switch (c.timestep_sampling) {
      case TrainingConfig::Timesteps::kUniform: return TimestepSampling::kUniform;
      case TrainingConfig::Timesteps::kSigmoid: return TimestepSampling::kSigmoid;
      case TrainingConfig::Timesteps::kLogitNormal: return TimestepSampling::kLogitNormal;
      case TrainingConfig::Timesteps::kShift: return TimestepSampling::kShift;
      case TrainingConfig::Timesteps::kFluxShift: break;
    }
    return TimestepSampling::kFluxShift;
  }();
  return {.kind = kind,
          .sigmoid_scale = c.sigmoid_scale,
          .logit_mean = c.logit_mean,
          .logit_std = c.logit_std,
          .shift = c.shift,
          .schedule = shift};
}

// One for every bucket.
std::vector<Sequence> sequences_of(const TrainingSet& data) {
  std::vector<Sequence> sequences;
  for (const Grid& grid : data.grids) sequences.push_back(make_sequence(data.text_tokens, grid));
  return sequences;
}

FluxRun training_run(const TrainConfig& config, const TrainingSet& data, const FluxShape& shape) {
  return {.batch = config.training.batch_size,
          .sequences = sequences_of(data),
          .wanted = {.gradients = true},
          .keep = config.training.activation_checkpointing ? Keep::kCheckpoint : Keep::kAll,
          .lora = select_lora_targets(config.lora, shape)};
}

void check_finite(double value, const char* what, std::int64_t step) {
  if (std::isfinite(value)) return;
  throw NumericError({.where = "training step " + std::to_string(step),
                      .found = std::string(what) + " " + std::to_string(value),
                      .expected = "a finite number",
                      .advice = "lower training.learning_rate, or check the data and the checkpoint"});
}

// Quantile of the standard normal distribution by bisection of its distribution function.
double normal_quantile(double p) {
  double low = -10.0;
  double high = 10.0;
  for (int i = 0; i < 80; ++i) {
    const double middle = 0.5 * (low + high);
    (0.5 * std::erfc(-middle / std::numbers::sqrt2) < p ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

}  // namespace

double learning_rate(const TrainingConfig& config, std::int64_t step) {
  const double peak = config.learning_rate;
  if (step <= config.warmup_steps) return peak * static_cast<double>(step) / static_cast<double>(config.warmup_steps);
  const auto rest = static_cast<double>(std::max<std::int64_t>(1, config.steps - config.warmup_steps));
  const double done = static_cast<double>(step - 1 - config.warmup_steps) / rest;
  switch (config.lr_schedule) {
    case TrainingConfig::Schedule::kConstant: return peak;
    case TrainingConfig::Schedule::kLinear: return peak * (1.0 - done);
    case TrainingConfig::Schedule::kCosine: return peak * 0.5 * (1.0 + std::cos(std::numbers::pi * done));
  }
  return peak;
}

double clip_factor(double norm, double max_norm) { return max_norm > 0.0 && norm > max_norm ? max_norm / norm : 1.0; }

Trainer::Trainer(Device& device, const Slab& slab, const TrainConfig& config, TrainingSet data,
                 const ScheduleShift& shift)
    : config_(config),
      data_(std::move(data)),
      timesteps_(timestep_settings(config.training, shift)),
      engine_(device, slab, training_run(config, data_, slab.flux_shape())),
      batch_(engine_),
      batches_(data_, config.training.seed, config.training.batch_size) {
  engine_.initialise_lora(config.lora.init == LoraConfig::Init::kGaussian ? LoraInit::kGaussian : LoraInit::kKaiming,
                          config.training.seed);
  if (!config.lora.start_from.empty()) start_from_lora(engine_, config.lora.start_from);
  for (const auto& [purpose, bytes] : engine_.memory_plan()) {
    spdlog::info("memory: {:8.1f} MiB  {}", static_cast<double>(bytes) / 0x1p20, purpose);
  }
}

Trainer::StepResult Trainer::step(std::int64_t step) {
  const TrainingConfig& c = config_.training;
  const std::int64_t samples = c.batch_size * c.accumulation;
  StepResult result{.learning_rate = learning_rate(c, step)};
  std::vector<float> noise;
  engine_.zero_gradients();
  for (std::int64_t micro = 0; micro < c.accumulation; ++micro) {
    const LoadedBatch drawn = batches_.get(static_cast<std::uint64_t>((step - 1) * c.accumulation + micro));
    engine_.select(drawn.bucket);
    for (std::int64_t slot = 0; slot < c.batch_size; ++slot) {
      const std::int64_t global = (step - 1) * samples + micro * c.batch_size + slot;
      // Not by micro-step: the split of a step into batches does not change what is drawn.
      RandomKey key{.seed = c.seed,
                    .purpose = Purpose::kNoise,
                    .step = static_cast<std::uint32_t>(step),
                    .sample = static_cast<std::uint32_t>(global)};
      const EncodedExample& example = drawn.examples[static_cast<std::size_t>(slot)];
      noise.resize(example.latent.size());
      Random(key).fill_normal(noise);
      key.purpose = Purpose::kTimestep;
      Random random(key);
      const double sigma = sample_sigma(random, timesteps_, data_.grids[drawn.bucket].tokens());
      batch_.set(slot, example, noise, sigma, c.guidance);
      result.sigma_mean += sigma / static_cast<double>(samples);
    }
    for (const float loss : batch_.forward_backward(1.0F / static_cast<float>(samples))) {
      result.loss += static_cast<double>(loss) / static_cast<double>(samples);
    }
  }
  check_finite(result.loss, "loss", step);
  Ops& ops = engine_.device().ops();
  LoraSet& lora = engine_.lora();
  result.grad_norm = std::sqrt(ops.sum_of_squares(lora.gradients()));
  check_finite(result.grad_norm, "gradient norm", step);
  AdamW update = lora.adamw();
  update.gradient_scale = static_cast<float>(clip_factor(result.grad_norm, c.max_grad_norm));
  update.learning_rate = static_cast<float>(result.learning_rate);
  update.beta1 = static_cast<float>(c.betas[0]);
  update.beta2 = static_cast<float>(c.betas[1]);
  update.epsilon = static_cast<float>(c.epsilon);
  update.weight_decay = static_cast<float>(c.weight_decay);
  update.step = step;
  ops.adamw(update);
  return result;
}

std::int64_t Trainer::run(Metrics& metrics, const std::atomic<bool>& stop,
                          const std::function<void(std::int64_t, bool)>& save) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const std::int64_t steps = config_.training.steps;
  std::int64_t done = 0;
  while (done < steps && !stop) {
    const StepResult result = step(++done);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    const bool logged = done % config_.log_every == 0 || done == steps;
    metrics.record({.step = done,
                    .loss = result.loss,
                    .learning_rate = result.learning_rate,
                    .grad_norm = result.grad_norm,
                    .sigma_mean = result.sigma_mean,
                    .seconds = seconds,
                    .seconds_per_step = seconds / static_cast<double>(done)},
                   logged);
    const bool interval = config_.save_every > 0 && done % config_.save_every == 0;
    if (interval && done < steps && !stop) save(done, false);
  }
  save(done, done == steps);
  return done;
}

FixedDrawLoss::FixedDrawLoss(Device& device, const Slab& slab, const TrainingConfig& config, const TrainingSet& data,
                             std::vector<LoraTarget> lora)
    : config_(config),
      data_(data),
      engine_(device, slab, {.batch = config.batch_size, .sequences = sequences_of(data), .lora = std::move(lora)}),
      batch_(engine_) {}

double FixedDrawLoss::operator()(std::int64_t draws) {
  const auto total = static_cast<std::int64_t>(data_.samples.size()) * draws;
  double sum = 0.0;
  for (std::size_t bucket = 0; bucket < data_.grids.size(); ++bucket) {
    std::vector<std::int64_t> indices;
    for (std::int64_t i = 0; i < total; ++i) {
      if (data_.samples[static_cast<std::size_t>(i / draws)].bucket == bucket) indices.push_back(i);
    }
    sum += sum_over(bucket, indices, draws);
  }
  return sum / static_cast<double>(total);
}

double FixedDrawLoss::sum_over(std::size_t bucket, const std::vector<std::int64_t>& indices, std::int64_t draws) {
  const auto batch = static_cast<std::size_t>(config_.batch_size);
  engine_.select(bucket);
  std::int64_t loaded = -1;
  EncodedExample example;
  std::vector<float> noise;
  double sum = 0.0;
  for (std::size_t begin = 0; begin < indices.size(); begin += batch) {
    for (std::size_t slot = 0; slot < batch; ++slot) {
      const std::int64_t index = indices[std::min(begin + slot, indices.size() - 1)];  // what fills up does not count
      if (loaded != index / draws) {
        loaded = index / draws;
        example = data_.load({.sample = static_cast<std::uint32_t>(loaded)});
      }
      noise.resize(example.latent.size());
      Random({.purpose = Purpose::kTest, .sample = static_cast<std::uint32_t>(index)}).fill_normal(noise);
      const double quantile = (static_cast<double>(index % draws) + 0.5) / static_cast<double>(draws);
      const double sigma = 1.0 / (1.0 + std::exp(-normal_quantile(quantile)));
      batch_.set(static_cast<std::int64_t>(slot), example, noise, sigma, config_.guidance);
    }
    const std::vector<float> loss = batch_.forward();
    for (std::size_t slot = 0; slot < std::min(batch, indices.size() - begin); ++slot) {
      sum += static_cast<double>(loss[slot]);
    }
  }
  return sum;
}

}  // namespace squareq
