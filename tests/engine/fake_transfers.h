// Transfers without a device: two streams whose work is done later, a random amount of it at each call, in any order
// that the events allow. So what is used before it has arrived, or overwritten while it is used, shows.
#pragma once

#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <random>
#include <stdexcept>

#include "kernels/transfers.h"

namespace squareq::test {

class FakeTransfers : public Transfers {
 public:
  explicit FakeTransfers(std::uint32_t seed) : random_(seed) {}

  // The copy with this number fails (from 0).
  void fail_copy(std::size_t number) { failing_copy_ = number; }
  void refuse_registration() { refuses_ = true; }
  std::size_t copies() const { return copies_; }

  // Work for the compute stream.
  void compute(std::function<void()> work) { enqueue(Stream::kCompute, {.work = std::move(work)}); }
  // Does all work that is left; throws if events block it for ever.
  void drain() {
    std::unique_lock lock(mutex_);
    while (run_one()) {
    }
    if (!streams_[0].empty() || !streams_[1].empty()) throw std::runtime_error("streams wait for each other");
  }

  std::unique_ptr<Event> make_event(bool) override { return std::make_unique<FakeEvent>(); }
  void copy(const std::byte* from, std::byte* to, std::size_t bytes) override {
    {
      const std::lock_guard lock(mutex_);
      if (copies_++ == failing_copy_) throw std::runtime_error("the copy fails");
    }
    enqueue(Stream::kCopy, {.work = [=] { std::memcpy(to, from, bytes); }});
  }
  void record(Event& event, Stream stream) override {
    auto& fake = static_cast<FakeEvent&>(event);
    enqueue(stream, {.work = [state = fake.state] { ++state->passed; }}, &fake);
  }
  void wait(Stream stream, const Event& event) override {
    const auto& fake = static_cast<const FakeEvent&>(event);
    std::unique_lock lock(mutex_);
    const std::size_t target = fake.state->recorded;
    lock.unlock();
    enqueue(stream, {.blocked_by = fake.state, .until = target});
  }
  void wait(const Event& event) override {
    const auto& fake = static_cast<const FakeEvent&>(event);
    std::unique_lock lock(mutex_);
    const std::size_t target = fake.state->recorded;
    while (fake.state->passed < target) {
      if (run_one()) continue;
      if (changed_.wait_for(lock, std::chrono::seconds(20)) == std::cv_status::timeout) {
        throw std::runtime_error("nothing moves any more");
      }
    }
  }
  double seconds(const Event&, const Event&) const override { return 0.0; }
  Buffer allocate_pinned(std::size_t bytes) override {
    return {new std::byte[bytes], [](std::byte* p) { delete[] p; }};
  }
  std::unique_ptr<Registration> register_memory(std::span<const std::byte>) override {
    return refuses_ ? nullptr : std::make_unique<Registration>();
  }

 private:
  struct State {
    std::size_t recorded = 0, passed = 0;
  };
  struct FakeEvent : Event {
    std::shared_ptr<State> state = std::make_shared<State>();
  };
  struct Work {
    std::function<void()> work = [] {};
    std::shared_ptr<State> blocked_by;
    std::size_t until = 0;
  };

  void enqueue(Stream stream, Work work, FakeEvent* recorded = nullptr) {
    const std::lock_guard lock(mutex_);
    if (recorded != nullptr) ++recorded->state->recorded;
    streams_[static_cast<std::size_t>(stream)].push_back(std::move(work));
    for (std::uint32_t steps = random_() % 4; steps > 0 && run_one(); --steps) {
    }
    changed_.notify_all();
  }

  // One piece of work that may run, of either stream.
  bool run_one() {
    const std::size_t first = random_() % 2;
    for (const std::size_t i : {first, 1 - first}) {
      std::deque<Work>& stream = streams_[i];
      if (stream.empty()) continue;
      Work& head = stream.front();
      if (head.blocked_by && head.blocked_by->passed < head.until) continue;
      const auto work = std::move(head.work);
      stream.pop_front();
      work();
      changed_.notify_all();
      return true;
    }
    return false;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Work> streams_[2];
  std::minstd_rand random_;
  std::size_t copies_ = 0;
  std::size_t failing_copy_ = static_cast<std::size_t>(-1);
  bool refuses_ = false;
};

}  // namespace squareq::test
