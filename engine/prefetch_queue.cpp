#include "engine/prefetch_queue.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace squareq {

PrefetchQueue::PrefetchQueue(Transfers& transfers, PartSource& source, const std::vector<std::byte*>& home,
                             const std::vector<std::byte*>& slots, std::size_t readers)
    : transfers_(transfers), source_(source), parts_(home.size()) {
  const auto add = [&](std::byte* memory, std::size_t owner) {
    slots_.push_back({.memory = memory,
                      .owner = owner,
                      .part = owner,
                      .ready = transfers_.make_event(),
                      .freed = transfers_.make_event()});
  };
  for (std::byte* memory : slots) add(memory, kNone);
  for (std::size_t part = 0; part < home.size(); ++part) {
    if (home[part] == nullptr) continue;
    parts_[part].home = slots_.size();
    add(home[part], part);
  }
  for (std::size_t i = 0; i < readers; ++i) readers_.emplace_back([this] { reader_loop(); });
}

PrefetchQueue::~PrefetchQueue() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  jobs_changed_.notify_all();
  for (std::thread& reader : readers_) reader.join();
  try {
    const std::unique_ptr<Event> end = transfers_.make_event();
    transfers_.record(*end, Stream::kCopy);
    transfers_.wait(*end);
  } catch (...) {  // the device is lost, and with it every copy
  }
}

void PrefetchQueue::expect(const std::vector<std::size_t>& uses) {
  const std::lock_guard lock(mutex_);
  expected_ = uses;
  position_ = 0;
  scheduled_ = 0;
  for (Part& part : parts_) part.uses.clear();
  for (std::size_t i = 0; i < expected_.size(); ++i) parts_.at(expected_[i]).uses.push_back(i);
  schedule();
}

std::size_t PrefetchQueue::next_use(std::size_t part) const {
  const std::deque<std::size_t>& uses = parts_[part].uses;
  return uses.empty() ? kNone : uses.front();
}

// The slot that can take a part used at `position`: an empty one, else the one whose part is used last, if not before.
// A slot whose load is under way is left alone.
std::size_t PrefetchQueue::victim(std::size_t position) const {
  std::size_t best = kNone;
  std::size_t latest = position;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.owner != kNone || slot.acquired || slot.pieces_left > 0) continue;
    if (slot.part == kNone) return i;
    const std::size_t use = next_use(slot.part);
    if (use < latest) continue;
    best = i;
    latest = use;
  }
  return best;
}

void PrefetchQueue::schedule() {
  if (failure_ || stopping_) return;
  for (scheduled_ = std::max(scheduled_, position_); scheduled_ < expected_.size(); ++scheduled_) {
    const std::size_t part = expected_[scheduled_];
    if (parts_[part].slot == kNone && !start_load(part, scheduled_)) return;
  }
}

// False if there is no slot for a part that is used at `position`.
bool PrefetchQueue::start_load(std::size_t part, std::size_t position) {
  Part& loaded = parts_[part];
  const std::size_t slot = loaded.home != kNone ? loaded.home : victim(position);
  if (slot == kNone) return false;
  Slot& target = slots_[slot];
  if (target.part != kNone) parts_[target.part].slot = kNone;
  target.part = part;
  target.pieces_left = source_.pieces(part);
  loaded.slot = slot;
  ++loaded.loads;
  if (loaded.prepared) {
    queue_pieces(part);
  } else {
    jobs_.push_back({.part = part});
  }
  jobs_changed_.notify_all();
  return true;
}

void PrefetchQueue::queue_pieces(std::size_t part) {
  const std::size_t pieces = source_.pieces(part);
  for (std::size_t piece = 0; piece < pieces; ++piece) jobs_.push_back({.part = part, .piece = piece});
}

void PrefetchQueue::reader_loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    jobs_changed_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
    if (stopping_) return;
    const Job job = jobs_.front();
    jobs_.pop_front();
    try {
      work_on(job, lock);
    } catch (...) {
      if (!lock.owns_lock()) lock.lock();
      if (!failure_) failure_ = std::current_exception();
      jobs_.clear();
      loaded_.notify_all();
    }
  }
}

// Called and left with the lock held.
void PrefetchQueue::work_on(const Job& job, std::unique_lock<std::mutex>& lock) {
  Slot& slot = slots_[parts_[job.part].slot];
  lock.unlock();
  if (job.piece == kNone) {
    source_.prepare(job.part);
    lock.lock();
    if (failure_ || stopping_) return;
    parts_[job.part].prepared = true;
    queue_pieces(job.part);
    jobs_changed_.notify_all();
    return;
  }
  source_.load(job.part, job.piece, slot.memory, [&] {
    const std::lock_guard guard(mutex_);
    if (!slot.waits_for_use) return;
    transfers_.wait(Stream::kCopy, *slot.freed);
    slot.waits_for_use = false;
  });
  lock.lock();
  if (slot.pieces_left > 1) {
    --slot.pieces_left;
    return;
  }
  transfers_.record(*slot.ready, Stream::kCopy);
  slot.waits_for_load = true;
  slot.pieces_left = 0;
  loaded_.notify_all();
}

std::byte* PrefetchQueue::acquire(std::size_t part) {
  std::unique_lock lock(mutex_);
  Part& wanted = parts_.at(part);
  while (!failure_ && wanted.slot == kNone) {
    schedule();
    if (wanted.slot != kNone) break;
    if (start_load(part, 0)) {  // out of turn, at the cost of a part that is used earlier than what was scheduled
      scheduled_ = position_;
      break;
    }
    const bool busy = std::any_of(slots_.begin(), slots_.end(),
                                  [](const Slot& slot) { return slot.owner == kNone && slot.pieces_left > 0; });
    if (!busy) throw std::logic_error("PrefetchQueue: every slot is acquired");
    loaded_.wait(lock);
  }
  loaded_.wait(lock, [&] { return failure_ || slots_[wanted.slot].pieces_left == 0; });
  if (failure_) std::rethrow_exception(failure_);
  Slot& slot = slots_[wanted.slot];
  slot.acquired = true;
  if (next_use(part) != kNone) {
    for (const std::size_t use = next_use(part); position_ <= use; ++position_) {
      parts_[expected_[position_]].uses.pop_front();
    }
  }
  if (slot.waits_for_load) transfers_.wait(Stream::kCompute, *slot.ready);
  slot.waits_for_load = false;
  return slot.memory;
}

std::vector<std::size_t> PrefetchQueue::loads() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::size_t> counts;
  for (const Part& part : parts_) counts.push_back(part.loads);
  return counts;
}

void PrefetchQueue::release(std::size_t part) {
  const std::lock_guard lock(mutex_);
  Slot& slot = slots_.at(parts_.at(part).slot);
  slot.acquired = false;
  if (slot.owner != kNone) return;
  transfers_.record(*slot.freed, Stream::kCompute);
  slot.waits_for_use = true;
  schedule();
}

}  // namespace squareq
