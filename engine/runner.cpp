#include "engine/runner.h"

#include <algorithm>
#include <chrono>

namespace squareq {
namespace {

using Clock = std::chrono::steady_clock;

// Of work that is done: the device may lag behind.
double seconds_until_done(Device& device, Clock::time_point start) {
  device.synchronize();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Runner::Runner(Device& device, SlabStore& store, std::vector<Stage> stages, Keep keep)
    : device_(device), store_(store), stages_(std::move(stages)), keep_(keep) {}

bool Runner::shares(const Stage& stage) const {
  return keep_ == Keep::kNothing || (keep_ == Keep::kCheckpoint && stage.recomputable);
}

void Runner::layout(Carver& carver) {
  std::vector<const Stage*> sharing;
  for (const Stage& stage : stages_) {
    if (shares(stage)) {
      sharing.push_back(&stage);
    } else {
      stage.saved(carver);
    }
  }
  carver.take_alternatives(sharing.size(), [&](std::size_t i) { sharing[i]->saved(carver); });
}

void Runner::rehearse() {
  for (const Stage& stage : stages_) {
    store_.bind_shapes(stage);
    stage.forward(device_.ops(), Pass::kForward);
    if (keep_ != Keep::kNothing && stage.has_backward) stage.backward(device_.ops());
  }
}

void Runner::expect(bool backward) {
  std::vector<const Stage*> order;
  for (const bool back : {backward, !backward && keep_ != Keep::kNothing}) {
    const auto begin = order.size();
    for (const Stage& stage : stages_) {
      if (!back || stage.has_backward) order.push_back(&stage);
    }
    if (back) std::reverse(order.begin() + static_cast<std::ptrdiff_t>(begin), order.end());
  }
  store_.expect(order);
}

void Runner::forward(const Observer& observer) {
  expect(false);
  for (const Stage& stage : stages_) {
    const auto start = Clock::now();
    store_.acquire(stage);
    stage.forward(device_.ops(), Pass::kForward);
    store_.release(stage);
    if (observer) observer(stage, seconds_until_done(device_, start));
  }
}

void Runner::backward(const Observer& observer) {
  expect(true);
  for (auto stage = stages_.rbegin(); stage != stages_.rend(); ++stage) {
    if (!stage->has_backward) continue;
    const auto start = Clock::now();
    store_.acquire(*stage);
    if (shares(*stage)) stage->forward(device_.ops(), Pass::kRecompute);
    stage->backward(device_.ops());
    store_.release(*stage);
    if (observer) observer(*stage, seconds_until_done(device_, start));
  }
}

}  // namespace squareq
