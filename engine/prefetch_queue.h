// Weights that do not stay on the device: parts of a file are copied into a few slots of device memory ahead of their
// use. Use and order are told in advance (expect), so a slot is given to the part that is needed next and taken from
// the one that is needed last; what a forward pass leaves in the slots serves the backward pass that follows.
//
// Reader threads bring the bytes, a stream of its own copies them, events order copies and computation. The caller
// never waits for the device: acquire returns when the copies have been given to their stream.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/transfers.h"

namespace squareq {

// Where the parts come from. Called by several reader threads at a time; what it throws, acquire throws.
class PartSource {
 public:
  virtual ~PartSource() = default;
  // Before the first load of a part.
  virtual void prepare(std::size_t part) = 0;
  // A part is brought in this many pieces, each by any reader.
  virtual std::size_t pieces(std::size_t part) const = 0;
  // Copies one piece to its place in the memory of the part; calls before_copy before it gives a copy to the stream.
  virtual void load(std::size_t part, std::size_t piece, std::byte* memory,
                    const std::function<void()>& before_copy) = 0;
};

class PrefetchQueue {
 public:
  // `home` has for every part the memory where it stays once it is loaded, or null for those that share `slots`.
  PrefetchQueue(Transfers& transfers, PartSource& source, const std::vector<std::byte*>& home,
                const std::vector<std::byte*>& slots, std::size_t readers);
  // Waits for what the readers and the copy stream are doing. Nothing may be computing on the slots any more.
  ~PrefetchQueue();
  PrefetchQueue(const PrefetchQueue&) = delete;
  PrefetchQueue& operator=(const PrefetchQueue&) = delete;

  // The uses from here on, in order; takes the place of what was expected before. Loads start at once.
  void expect(const std::vector<std::size_t>& uses);

  // Memory of the part, for the operations that the compute stream is given from here on. Normally the next expected
  // use; another part is loaded out of turn. Throws what a reader threw, from then on always. Throws std::logic_error
  // if all slots are acquired.
  std::byte* acquire(std::size_t part);
  // The operations that read the part have been given to the compute stream.
  void release(std::size_t part);

  // Loads so far of each part.
  std::vector<std::size_t> loads() const;

 private:
  static constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();

  struct Slot {
    std::byte* memory = nullptr;
    std::size_t owner = kNone;    // the part that alone uses this slot
    std::size_t part = kNone;     // what is in it or on its way
    std::size_t pieces_left = 0;  // not yet given to the copy stream
    bool waits_for_load = false;  // no kernel may start before `ready` has passed
    bool waits_for_use = false;   // no copy may start before `freed` has passed
    bool acquired = false;
    std::unique_ptr<Event> ready, freed;
  };
  struct Part {
    std::size_t home = kNone;  // the slot that it owns
    std::size_t slot = kNone;  // where it is or will be
    bool prepared = false;
    std::size_t loads = 0;
    std::deque<std::size_t> uses;  // positions in the expected order, next one first
  };
  struct Job {
    std::size_t part = 0;
    std::size_t piece = kNone;  // kNone: prepare, then queue the pieces
  };

  void schedule();
  std::size_t victim(std::size_t position) const;
  std::size_t next_use(std::size_t part) const;
  bool start_load(std::size_t part, std::size_t position);
  void queue_pieces(std::size_t part);
  void reader_loop();
  void work_on(const Job& job, std::unique_lock<std::mutex>& lock);

  Transfers& transfers_;
  PartSource& source_;
  mutable std::mutex mutex_;
  std::condition_variable jobs_changed_, loaded_;
  std::vector<Slot> slots_;
  std::vector<Part> parts_;
  std::vector<std::size_t> expected_;
  std::size_t position_ = 0;   // of the next use in expected_
  std::size_t scheduled_ = 0;  // everything expected before this position is in a slot or on its way
  std::deque<Job> jobs_;
  std::exception_ptr failure_;
  bool stopping_ = false;
  std::vector<std::thread> readers_;
};

}  // namespace squareq
