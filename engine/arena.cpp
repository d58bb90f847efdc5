#include "engine/arena.h"

#include <fmt/format.h>

#include <limits>
#include <new>

#include "kernels/base/error.h"

namespace squareq {

ArenaBytes measure_arena(Device& device, const ArenaWork& work) {
  Carver measure;
  work.layout(measure);
  // Not null, since a null view means "not wanted"; never read or written.
  auto* nowhere = reinterpret_cast<std::byte*>(Carver::kAlignment);  // NOLINT(performance-no-int-to-ptr)
  const std::size_t scratch = device.ops().scratch_need([&] {
    Carver rehearsal(nowhere, std::numeric_limits<std::size_t>::max());
    work.layout(rehearsal);
    work.rehearse(device.ops());
  });
  return {.layout = measure.used(), .scratch = scratch};
}

Arena::Arena(Device& device, const ArenaWork& work) : device_(&device) {
  const ArenaBytes need = measure_arena(device, work);
  bytes_ = need.layout + need.scratch;
  try {
    memory_ = device.allocate(bytes_);
  } catch (const std::bad_alloc&) {
    const DeviceMemory memory = device.memory();
    const auto gib = [](std::size_t count) { return fmt::format("{:.2f} GiB", static_cast<double>(count) / 0x1p30); };
    throw ConfigError({.where = "memory of " + device.name(),
                       .found = gib(memory.free) + " free of " + gib(memory.total),
                       .expected = gib(bytes_),
                       .advice = "end other programs that use it, or set or lower vram_budget_gb"});
  }
  device.ops().tune(View(memory_.get(), DType::U8, 1, 1, static_cast<std::int64_t>(bytes_)));
  Carver carver(memory_.get(), bytes_);
  work.layout(carver);
  scratch_ = carver.take(DType::U8, 1, 1, static_cast<std::int64_t>(need.scratch));
}

void Arena::use() const { device_->ops().use_scratch(scratch_); }

}  // namespace squareq
