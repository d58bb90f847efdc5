#include "engine/runner.h"

#include <algorithm>

namespace squareq {
Runner::Runner(Device& device, SlabStore& store, std::vector<Stage> stages, Keep keep, KeptStages kept)
    : device_(device), store_(store), stages_(std::move(stages)), keep_(keep), kept_(std::move(kept)) {}

bool Runner::shares(const Stage& stage) const {
  return keep_ == Keep::kNothing || (keep_ == Keep::kCheckpoint && stage.recomputable && !kept_.all.contains(stage.id));
}

bool Runner::recomputes(const Stage& stage) const {
  return keep_ != Keep::kNothing && stage.has_backward && shares(stage);
}

bool Runner::recomputes_attention(const Stage& stage) const {
  return recomputes(stage) && !kept_.attention.contains(stage.id);
}

void Runner::layout(Carver& carver) {
  std::vector<const Stage*> sharing;
  const bool lasts = keep_ != Keep::kNothing;
  for (const Stage& stage : stages_) {
    if (shares(stage)) {
      sharing.push_back(&stage);
    } else {
      stage.saved(carver);
    }
    if (lasts && stage.lasting) stage.lasting(carver, shares(stage) && kept_.attention.contains(stage.id));
  }
  carver.take_alternatives(sharing.size(), [&](std::size_t i) {
    sharing[i]->saved(carver);
    if (!lasts && sharing[i]->lasting) sharing[i]->lasting(carver, false);
  });
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
      if (!back || stage.reads_weights_in_backward()) order.push_back(&stage);
    }
    if (back) std::reverse(order.begin() + static_cast<std::ptrdiff_t>(begin), order.end());
  }
  store_.expect(order);
}

void Runner::run(const Stage& stage, bool backward) {
  Mark around{.stage = &stage, .backward = backward, .begin = mark()};
  const bool weights = !backward || stage.reads_weights_in_backward();
  if (weights) store_.acquire(stage);
  around.ready = mark();
  if (!backward || recomputes(stage)) stage.forward(device_.ops(), backward ? Pass::kRecompute : Pass::kForward);
  if (backward) stage.backward(device_.ops());
  if (weights) store_.release(stage);
  around.end = mark();
  if (measuring_) marks_.push_back(std::move(around));
}

void Runner::forward(const Observer& observer) {
  expect(false);
  for (const Stage& stage : stages_) {
    run(stage, false);
    if (observer) observer(stage);
  }
  store_.check_unchanged();
}

void Runner::backward(const Observer& observer) {
  expect(true);
  for (auto stage = stages_.rbegin(); stage != stages_.rend(); ++stage) {
    if (!stage->has_backward) continue;
    run(*stage, true);
    if (observer) observer(*stage);
  }
  store_.check_unchanged();
}

void Runner::transfer() {
  const auto bring = [&](const Stage& stage) {
    store_.acquire(stage);
    store_.release(stage);
  };
  expect(false);
  std::for_each(stages_.begin(), stages_.end(), bring);
  expect(true);
  std::for_each(stages_.rbegin(), stages_.rend(), [&](const Stage& stage) {
    if (stage.reads_weights_in_backward()) bring(stage);
  });
}

std::unique_ptr<Event> Runner::mark() {
  if (!measuring_) return nullptr;
  std::unique_ptr<Event> event = device_.transfers().make_event(true);
  device_.transfers().record(*event, Stream::kCompute);
  return event;
}

std::vector<StageTime> Runner::times() {
  device_.synchronize();
  std::vector<StageTime> list;
  const Transfers& transfers = device_.transfers();
  for (const Mark& m : marks_) {
    list.push_back({.stage = m.stage,
                    .backward = m.backward,
                    .stall = transfers.seconds(*m.begin, *m.ready),
                    .seconds = transfers.seconds(*m.ready, *m.end)});
  }
  measuring_ = false;
  marks_.clear();
  return list;
}

}  // namespace squareq
