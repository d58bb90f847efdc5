// Bringing weights to a device while it computes: two streams, events that order them against each other and against
// the host, and host memory that copies read at full speed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

namespace squareq {

// A region of memory, freed with its owner. Aligned to 4096 bytes; content undefined.
using Buffer = std::unique_ptr<std::byte[], std::function<void(std::byte*)>>;

// Work given to one stream is done in order. Operations (Device::ops) go to kCompute, copies to kCopy.
enum class Stream : std::uint8_t { kCompute, kCopy };

// A place in a stream, set by Transfers::record. One that was never recorded has passed.
class Event {
 public:
  virtual ~Event() = default;
};

// Host memory from which the device copies by itself, until this object goes.
class Registration {
 public:
  virtual ~Registration() = default;
};

// May be used from several threads at a time, an Event from one.
class Transfers {
 public:
  virtual ~Transfers() = default;

  // Only events that are `timed` can be given to seconds().
  virtual std::unique_ptr<Event> make_event(bool timed = false) = 0;
  // Gives the copy stream a copy from host to device and returns. `from` has to stay as it is until an event recorded
  // later has passed.
  virtual void copy(const std::byte* from, std::byte* to, std::size_t bytes) = 0;
  virtual void record(Event& event, Stream stream) = 0;
  // What the stream is given from here on starts when the event has passed.
  virtual void wait(Stream stream, const Event& event) = 0;
  // The calling thread waits.
  virtual void wait(const Event& event) = 0;
  // From one event to another, both passed.
  virtual double seconds(const Event& from, const Event& to) const = 0;

  // Host memory that the device copies from at full speed. Throws std::bad_alloc.
  virtual Buffer allocate_pinned(std::size_t bytes) = 0;
  // The same for memory that is there already, such as a mapped file; only read. Null where it is refused.
  virtual std::unique_ptr<Registration> register_memory(std::span<const std::byte> memory) = 0;
};

}  // namespace squareq
