#include "engine/trainer.h"

#include <spdlog/spdlog.h>

#include <cmath>

#include "engine/lora_targets.h"
#include "engine/saved_lora.h"
#include "kernels/base/random.h"

namespace squareq {
namespace {

TimestepSettings timestep_settings(const TrainingConfig& c, const ScheduleShift& shift) {
  return {.kind = c.timestep_sampling,
          .sigmoid_scale = c.sigmoid_scale,
          .logit_mean = c.logit_mean,
          .logit_std = c.logit_std,
          .shift = c.shift,
          .mode_scale = c.mode_scale,
          .schedule = shift,
          .sigma_min = c.sigma_min,
          .sigma_max = c.sigma_max};
}

}  // namespace

FluxRun training_run(const TrainConfig& config, const FluxShape& shape, std::vector<Sequence> sequences) {
  const TrainingConfig& t = config.training;
  return {.batch = t.batch_size,
          .sequences = std::move(sequences),
          .wanted = {.gradients = true},
          .keep = t.activation_checkpointing ? Keep::kCheckpoint : Keep::kAll,
          .residency = {.path = config.host_path},
          .lora = select_lora_targets(config.lora, shape),
          .lora_memory = {.eight_bit_moments = t.optimizer == TrainingConfig::Optimizer::kAdamW8Bit,
                          .average = t.ema_decay > 0.0,
                          .dropout_batch = config.lora.rank_dropout > 0.0 ? t.batch_size : 0}};
}

Trainer::Trainer(Device& device, const Slab& slab, const TrainConfig& config, TrainingSet data,
                 const ScheduleShift& shift, const FluxRun& run)
    : config_(config),
      data_(std::move(data)),
      timesteps_(timestep_settings(config.training, shift)),
      engine_(device, slab, run),
      batch_(engine_, config.training.loss, config.training.huber_c),
      batches_(data_, config.training.seed, config.training.batch_size) {
  engine_.initialise_lora(config.lora.init == LoraConfig::Init::kGaussian ? LoraInit::kGaussian : LoraInit::kKaiming,
                          config.training.seed);
  if (!config.lora.start_from.empty()) start_from_lora(engine_, config.lora.start_from);
  const LoraSet& lora = engine_.lora();
  if (lora.average()) device.ops().copy(lora.trained(), lora.average(), Accumulate::kNo);
  for (const auto& [purpose, bytes] : engine_.memory_plan()) {
    spdlog::info("memory: {:8.1f} MiB  {}", static_cast<double>(bytes) / 0x1p20, purpose);
  }
}

StepResult Trainer::step() {
  const TrainingConfig& c = config_.training;
  StepResult result{.learning_rate = learning_rate(c, progress_.step + 1)};
  gradients(result);
  result.grad_norm = std::sqrt(engine_.device().ops().sum_of_squares(engine_.lora().gradients()));
  result.skipped = reason_to_skip(c, progress_.guard, result.loss, result.grad_norm);
  if (result.skipped.empty()) {
    update(result);
    remember(progress_.guard, result.grad_norm);
    progress_.skipped = 0;
  } else {
    ++progress_.skipped;
  }
  ++progress_.step;
  progress_.batches += c.accumulation;
  progress_.losses.push_back(result.loss);
  return result;
}

void Trainer::gradients(StepResult& result) {
  const TrainingConfig& c = config_.training;
  const auto samples = static_cast<double>(c.batch_size * c.accumulation);
  engine_.zero_gradients();
  for (std::int64_t micro = 0; micro < c.accumulation; ++micro) {
    const std::int64_t number = progress_.batches + micro;
    const std::int64_t first = number * c.batch_size;
    const LoadedBatch loaded = batches_.get(static_cast<std::uint64_t>(number));
    engine_.select(loaded.bucket);
    for (std::int64_t slot = 0; slot < c.batch_size; ++slot) {
      const double sigma = set_sample(slot, first + slot, loaded.examples[static_cast<std::size_t>(slot)]);
      result.sigma_mean += sigma / samples;
    }
    if (engine_.lora().keep()) drop_ranks(first);
    for (const float loss : batch_.forward_backward(1.0 / samples)) result.loss += static_cast<double>(loss) / samples;
  }
}

// Not by micro-step: the split of a step into batches does not change what is drawn.
RandomKey Trainer::key(Purpose purpose, std::int64_t global) const {
  return {.seed = config_.training.seed,
          .purpose = purpose,
          .step = static_cast<std::uint32_t>(progress_.step + 1),
          .sample = static_cast<std::uint32_t>(global)};
}

// Returns the sample's noise level.
double Trainer::set_sample(std::int64_t slot, std::int64_t global, const EncodedExample& example) {
  const TrainingConfig& c = config_.training;
  noise_.resize(example.latent.size());
  Random(key(Purpose::kNoise, global)).fill_normal(noise_);
  const std::int64_t features = engine_.state().shape.out_channels;
  if (c.noise_offset > 0.0) {
    Random random(key(Purpose::kNoiseOffset, global));
    offset_noise(noise_, features, c.noise_offset, random);
  }
  Random random(key(Purpose::kTimestep, global));
  const double sigma = sample_sigma(random, timesteps_, static_cast<std::int64_t>(noise_.size()) / features);
  batch_.set(slot, {.example = example,
                    .noise = noise_,
                    .sigma = sigma,
                    .guidance = c.guidance,
                    .weight = loss_weight(c.loss_weighting, sigma)});
  return sigma;
}

// The factor of each rank of each adapter for each sample: 0, or what makes up for those that are 0.
void Trainer::drop_ranks(std::int64_t first_sample) {
  const LoraSet& lora = engine_.lora();
  const double dropout = config_.lora.rank_dropout;
  std::vector<float> factors;
  for (std::int64_t slot = 0; slot < lora.keep().batch; ++slot) {
    RandomKey stream = key(Purpose::kRankDropout, first_sample + slot);
    for (std::size_t i = 0; i < lora.targets().size() && lora.targets()[i].trained; ++i) {
      stream.module = static_cast<std::uint32_t>(i);
      Random random(stream);
      for (std::int64_t r = 0; r < lora.targets()[i].rank; ++r) {
        factors.push_back(random.uniform() < dropout ? 0.0F : static_cast<float>(1.0 / (1.0 - dropout)));
      }
    }
  }
  engine_.device().upload(factors.data(), lora.keep());
}

void Trainer::update(const StepResult& result) {
  const TrainingConfig& c = config_.training;
  Ops& ops = engine_.device().ops();
  const LoraSet& lora = engine_.lora();
  AdamW adamw = lora.adamw();
  adamw.gradient_scale = static_cast<float>(clip_factor(result.grad_norm, c.max_grad_norm));
  adamw.learning_rate = static_cast<float>(result.learning_rate);
  adamw.beta1 = static_cast<float>(c.betas[0]);
  adamw.beta2 = static_cast<float>(c.betas[1]);
  adamw.epsilon = static_cast<float>(c.epsilon);
  adamw.weight_decay = static_cast<float>(c.weight_decay);
  adamw.step = ++progress_.updates;
  ops.adamw(adamw);
  if (!lora.average()) return;
  ops.lerp(lora.trained(), static_cast<float>(average_weight(c.ema_decay, progress_.updates)), lora.average());
}

// The gradients of a step are not read after it: meanwhile their memory holds the adapters themselves.
Trainer::Evaluation::Evaluation(Trainer& trainer) : engine_(trainer.engine_) {
  const LoraSet& lora = engine_.lora();
  Ops& ops = engine_.device().ops();
  if (lora.keep()) ops.fill(lora.keep(), 1.0F);
  if (!lora.average()) return;
  ops.copy(lora.trained(), lora.gradients(), Accumulate::kNo);
  ops.copy(lora.average(), lora.trained(), Accumulate::kNo);
}

Trainer::Evaluation::~Evaluation() {
  const LoraSet& lora = engine_.lora();
  if (!lora.average()) return;
  try {
    engine_.device().ops().copy(lora.gradients(), lora.trained(), Accumulate::kNo);
  } catch (const std::exception& error) {  // the device is lost: nothing on it will be read again
    spdlog::error("the adapters could not be put back: {}", error.what());
  }
}

}  // namespace squareq
