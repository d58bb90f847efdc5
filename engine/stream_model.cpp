#include "engine/stream_model.h"

#include <algorithm>

namespace squareq {
namespace {

constexpr std::size_t kSteps = 3;  // the first ones fill the slots, the last one counts

// Slots that hold different streamed stages.
class Window {
 public:
  explicit Window(std::size_t stages) : uses_(stages) {}
  void add(const PassStage& s) {
    if (s.streamed > 0 && uses_[s.stage]++ == 0) slots_ += s.slots_used;
  }
  void remove(const PassStage& s) {
    if (s.streamed > 0 && --uses_[s.stage] == 0) slots_ -= s.slots_used;
  }
  bool holds(const PassStage& s) const { return uses_[s.stage] > 0; }
  std::size_t slots() const { return slots_; }

 private:
  std::vector<std::size_t> uses_;
  std::size_t slots_ = 0;
};

}  // namespace

double predict_step(const std::vector<PassStage>& step, std::size_t slots, double rate) {
  std::size_t stages = 0;
  for (const PassStage& s : step) stages = std::max(stages, s.stage + 1);
  Window window(stages);
  std::size_t oldest = 0;  // the window is [oldest, i]: what the slots hold when use i is loaded
  double compute = 0.0;
  double copied = 0.0;
  double step_began = 0.0;
  std::vector<double> done;
  for (std::size_t i = 0; i < kSteps * step.size(); ++i) {
    if (i == (kSteps - 1) * step.size()) step_began = compute;
    const PassStage& s = step[i % step.size()];
    const bool there = window.holds(s);
    window.add(s);
    while (window.slots() > slots && oldest < i) window.remove(step[oldest++ % step.size()]);
    if (s.streamed > 0 && !there) {
      const double slot_free = oldest > 0 ? done[oldest - 1] : 0.0;
      copied = std::max(copied, slot_free) + static_cast<double>(s.streamed) / rate;
      compute = std::max(compute, copied);
    }
    compute += s.seconds;
    done.push_back(compute);
  }
  return compute - step_began;
}

}  // namespace squareq
