#include "engine/runner.h"

#include <algorithm>
#include <chrono>

namespace squareq {
namespace {

class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

Runner::Runner(Ops& ops, SlabStore& store, std::vector<Stage> stages, Keep keep)
    : ops_(ops), store_(store), stages_(std::move(stages)), keep_(keep) {}

bool Runner::shares(const Stage& stage) const {
  return keep_ == Keep::kNothing || (keep_ == Keep::kCheckpoint && stage.recomputable);
}

void Runner::layout(Carver& carver) {
  std::size_t largest = 0;
  for (const Stage& stage : stages_) {
    if (shares(stage)) {
      Carver measure;
      stage.saved(measure);
      largest = std::max(largest, measure.used());
    } else {
      stage.saved(carver);
    }
  }
  shared_ = carver.take(DType::U8, 1, 1, static_cast<std::int64_t>(largest));
  if (carver.measuring()) return;
  for (const Stage& stage : stages_) {
    if (!shares(stage)) continue;
    Carver region(shared_.data, largest);
    stage.saved(region);
  }
}

void Runner::forward(const Observer& observer) {
  for (const Stage& stage : stages_) {
    const Stopwatch watch;
    store_.acquire(stage);
    stage.forward(ops_, Pass::kForward);
    if (observer) observer(stage, watch.seconds());
  }
}

void Runner::backward(const Observer& observer) {
  for (auto stage = stages_.rbegin(); stage != stages_.rend(); ++stage) {
    if (!stage->has_backward) continue;
    const Stopwatch watch;
    store_.acquire(*stage);
    if (shares(*stage)) stage->forward(ops_, Pass::kRecompute);
    stage->backward(ops_);
    if (observer) observer(*stage, watch.seconds());
  }
}

}  // namespace squareq
