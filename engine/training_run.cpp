#include "engine/training_run.h"

#include <spdlog/spdlog.h>

#include <filesystem>

#include "engine/evaluation.h"
#include "engine/identity.h"
#include "engine/lora_export.h"
#include "io/file.h"
#include "kernels/base/error.h"

namespace squareq {
namespace fs = std::filesystem;
namespace {

FluxRun planned_run(const TrainConfig& config, const FluxShape& shape, const RunInputs& inputs) {
  FluxRun run = training_run(config, shape, inputs);
  return inputs.plan ? inputs.plan->apply(std::move(run)) : run;
}

// The state that the configuration asks for, if there is one. Chooses the kernels that it was computed with.
std::optional<StateFile> state_to_resume(const TrainConfig& config, Ops& ops) {
  std::optional<StateFile> found;
  if (config.resume == "auto") {
    for (const SavedState& saved : find_states(config.output_dir, config.name)) {
      try {
        found.emplace(saved.path);
        break;
      } catch (const FormatError& error) {
        spdlog::warn("{}; trying an older state", error.what());
      }
    }
  } else if (config.resume != "off") {
    found.emplace(config.resume);
  }
  if (!found) return found;
  try {
    ops.restore_kernel_choices(found->state().kernel_choices);
  } catch (const FormatError& error) {
    spdlog::warn("kernels are chosen anew, and sums may differ in their last bits: {}", error.what());
  }
  return found;
}

bool due(std::int64_t step, std::int64_t every, std::int64_t last) {
  return every > 0 && (step % every == 0 || step == last);
}

}  // namespace

FluxRun training_run(const TrainConfig& config, const FluxShape& shape, const RunInputs& inputs) {
  FluxRun run = training_run(config, shape, sequences_of(inputs.data));
  for (Sequence& sequence : sequences_of(inputs.validation)) {
    run.forward_only.push_back({.phase = {.name = "validation", .smaller = "lower resolution or batch_size"},
                                .sequence = std::move(sequence)});
  }
  if (inputs.previews) {
    run.forward_only.push_back({.phase = {.name = "previews", .smaller = "lower preview.size or batch_size"},
                                .sequence = inputs.previews->sequence()});
    run.guests.push_back({.phase = {.name = "preview decoding", .smaller = "lower preview.size"},
                          .work = inputs.previews->decoder_work()});
  }
  return run;
}

TrainingRun::TrainingRun(Device& device, const Slab& slab, const TrainConfig& config, RunInputs inputs)
    : device_(device),
      config_(config),
      inputs_(std::move(inputs)),
      model_(slab_identity(slab)),
      resumed_(state_to_resume(config, device.ops())),
      trainer_(device, slab, config, inputs_.data, inputs_.shift, planned_run(config, slab.flux_shape(), inputs_)) {
  fs::create_directories(config.output_dir);
  remove_abandoned(config.output_dir);
  const MetricsOptions logs{.folder = config.output_dir,
                            .name = config.name,
                            .total_steps = config.training.steps,
                            .timestamps = config.timestamps};
  Metrics::Positions positions;
  if (resumed_) {
    take_up(*resumed_);
    // A state of another folder says nothing about the logs of this one.
    if (fs::equivalent(fs::absolute(resumed_->path()).parent_path(), config.output_dir)) {
      positions = resumed_->state().logs;
    }
    resumed_.reset();
  }
  metrics_.emplace(logs, positions);
}

std::string TrainingRun::output(const std::string& name) const {
  return (fs::path(config_.output_dir) / name).string();
}

void TrainingRun::check_same_run(const TrainState& state, const std::string& path) const {
  const TrainConfig before = parse_train_config(state.config, path + ": configuration");
  std::string refused;
  for (const ConfigChange& change : config_changes(before, config_)) {
    spdlog::warn("{} was {} when the state was saved and is {} now{}", change.path, change.before, change.after,
                 change.kept ? ": not possible" : "");
    if (change.kept) refused += (refused.empty() ? "" : ", ") + change.path;
  }
  if (state.model != model_) refused += refused.empty() ? "other weights of the model" : ", other weights of the model";
  if (state.data != trainer_.data().identity) refused += refused.empty() ? "other data" : ", other data";
  if (refused.empty()) return;
  throw ConfigError({.where = path,
                     .found = "a run that differs in what it trains: " + refused,
                     .expected = "the settings, model and data that the state was saved with",
                     .advice = "take the change back, or start anew with resume \"off\" or another name"});
}

void TrainingRun::take_up(const StateFile& file) {
  const std::string& path = file.path();
  const TrainState& state = file.state();
  check_same_run(state, path);
  file.restore(device_, trainer_.engine().lora());
  trainer_.progress() = state.progress;
  first_step_ = state.progress.step;
  seconds_before_ = state.progress.seconds;
  spdlog::info("going on after step {} of {}, from {}", first_step_, config_.training.steps, path);
}

std::int64_t TrainingRun::run(const std::atomic<bool>& stop) {
  started_ = std::time(nullptr);
  start_ = Clock::now();
  try {
    steps(stop);
  } catch (const std::exception&) {
    // Unless it is the logs that could not be written, they and the adapters are those of the last finished step.
    if (!logging_) save_state_after_error();
    throw;
  }
  return trainer_.progress().step;
}

void TrainingRun::steps(const std::atomic<bool>& stop) {
  const std::int64_t& done = trainer_.progress().step;
  const std::int64_t last = config_.training.steps;
  if (first_step_ >= last) spdlog::info("all {} steps are done: raise training.steps to go on", first_step_);
  evaluate(stop);
  while (done < last && !stop) {
    step();
    if (done == last) {
      save_state();
    } else if (due(done, config_.save_every, last)) {
      save_lora(lora_name(done));
      save_state();
    }
    evaluate(stop);
  }
  if (done >= last) return finish();
  save_state();
  save_lora(lora_name(done));
}

void TrainingRun::step() {
  TrainProgress& progress = trainer_.progress();
  const StepResult result = trainer_.step();
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  const std::string path = trainer_.engine().weights().path_name();
  if (progress.step == first_step_ + 1 && !path.empty()) spdlog::info("weights come by {}", path);
  progress.seconds = config_.timestamps ? seconds_before_ + seconds : 0.0;
  if (!result.skipped.empty()) {
    spdlog::warn("step {} is skipped: {} ({} in a row)", progress.step, result.skipped, progress.skipped);
  }
  if (progress.step % config_.log_every == 0 || progress.step == config_.training.steps) {
    logging_ = true;
    metrics_->record({.step = progress.step,
                      .loss = result.loss,
                      .learning_rate = result.learning_rate,
                      .grad_norm = result.grad_norm,
                      .sigma_mean = result.sigma_mean,
                      .seconds = seconds_before_ + seconds,
                      .seconds_per_step = seconds / static_cast<double>(progress.step - first_step_),
                      .skipped = !result.skipped.empty()});
    logging_ = false;
  }
  if (progress.skipped > config_.training.max_skips) {
    throw NumericError(
        {.where = fmt::format("training step {}", progress.step),
         .found = fmt::format("{} in {} steps in a row", result.skipped, progress.skipped),
         .expected = fmt::format("at most {} skipped steps (training.max_skips)", config_.training.max_skips),
         .advice = "lower training.learning_rate, or check the data and the checkpoint"});
  }
}

// What is due after the steps done so far. A run that stops meanwhile leaves it to the run that goes on: nothing is
// logged then.
void TrainingRun::evaluate(const std::atomic<bool>& stop) {
  TrainProgress& progress = trainer_.progress();
  const std::int64_t last = config_.training.steps;
  const bool validate = !inputs_.validation.samples.empty() && due(progress.step, config_.validation.every, last);
  const bool preview = inputs_.previews && due(progress.step, config_.preview.every, last);
  if (progress.evaluated == progress.step || !(validate || preview) || stop) return;
  FluxEngine& engine = trainer_.engine();
  double loss = 0.0;
  std::vector<std::string> pictures;
  {
    const Trainer::Evaluation evaluation(trainer_);
    if (validate) {
      loss = fixed_draw_loss(engine, inputs_.validation, trainer_.data().grids.size(), config_.validation.draws,
                             config_.training.guidance);
    }
    if (stop) return;
    if (preview) {
      engine.select(trainer_.data().grids.size() + inputs_.validation.grids.size());
      pictures = inputs_.previews->draw(engine, progress.step);
    }
  }
  logging_ = true;
  if (validate) metrics_->record_validation(progress.step, loss);
  for (std::size_t i = 0; i < pictures.size(); ++i) {
    metrics_->record_preview(progress.step, i, read_text(pictures[i]));
  }
  logging_ = false;
  progress.evaluated = progress.step;
}

void TrainingRun::save_lora(const std::string& name) {
  const Trainer::Evaluation evaluation(trainer_);
  const std::string path = output(name);
  export_lora(path, trainer_.engine(), config_,
              {.steps = trainer_.progress().step, .pictures = trainer_.data().pictures, .started = started_});
  spdlog::info("saved {}", path);
}

void TrainingRun::save_state() {
  const TrainProgress& progress = trainer_.progress();
  const std::string path = state_path(config_.output_dir, config_.name, progress.step);
  squareq::save_state(path, device_, trainer_.engine().lora(),
                      {.progress = progress,
                       .config = to_json(config_),
                       .model = model_,
                       .data = trainer_.data().identity,
                       .kernel_choices = device_.ops().kernel_choices(),
                       .logs = metrics_->sync()});
  spdlog::info("saved {}", path);
  remove_old_states();
}

// Leaves the newest ones of those that belong here. Later ones are of a run that this one took the place of. Those of
// other steps than save_every says are of a run that was stopped there and has gone on since; they go with their LoRA.
void TrainingRun::remove_old_states() const {
  const std::int64_t now = trainer_.progress().step;
  std::int64_t kept = 0;
  for (const SavedState& state : find_states(config_.output_dir, config_.name)) {
    const bool scheduled = state.step > 0 && due(state.step, config_.save_every, config_.training.steps);
    if (state.step == now || (state.step < now && scheduled)) {
      if (++kept <= config_.keep_states) continue;
    }
    if (!scheduled) fs::remove(output(lora_name(state.step)));
    fs::remove(state.path);
  }
}

std::string TrainingRun::lora_name(std::int64_t step) const {
  return fmt::format("{}-{:06}.safetensors", config_.name, step);
}

void TrainingRun::save_state_after_error() {
  try {
    save_state();
  } catch (const std::exception& error) {
    spdlog::error("the state could not be saved: {}", error.what());
  }
}

void TrainingRun::finish() {
  save_lora(config_.name + ".safetensors");
  const std::string curve = output(config_.name + "-loss.svg");
  write_loss_curve(curve, trainer_.progress().losses, config_.name);
  spdlog::info("loss curve {}", curve);
}

}  // namespace squareq
