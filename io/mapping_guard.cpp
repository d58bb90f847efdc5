#include "io/mapping_guard.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <utility>

namespace squareq {
namespace {

// The only thing that a signal handler can look at is global. A place is free while `end` is 0.
struct Place {
  std::atomic<bool> taken = false;
  std::atomic<std::uintptr_t> begin = 0, end = 0;
  std::atomic<bool> hit = false;
};
std::array<Place, 512> g_places;
std::uintptr_t g_page = 0;

extern "C" void on_bus_error(int signal, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (Place& place : g_places) {
    if (address < place.begin || address >= place.end) continue;
    place.hit = true;
    auto* page = reinterpret_cast<void*>(address / g_page * g_page);  // NOLINT(performance-no-int-to-ptr)
    if (mmap(page, g_page, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) return;
  }
  ::signal(signal, SIG_DFL);  // not ours: the same read ends the program now
}

void install() {
  g_page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace

MappingGuard::MappingGuard(std::span<const std::byte> memory) {
  static std::once_flag installed;
  std::call_once(installed, install);
  for (std::size_t i = 0; i < g_places.size(); ++i) {
    Place& place = g_places[i];
    if (place.taken.exchange(true)) continue;
    place.hit = false;
    place.begin = reinterpret_cast<std::uintptr_t>(memory.data());
    place.end = place.begin + memory.size();
    place_ = static_cast<int>(i);
    return;
  }
}

MappingGuard::~MappingGuard() {
  if (place_ < 0) return;
  Place& place = g_places[static_cast<std::size_t>(place_)];
  place.end = 0;
  place.taken = false;
}

MappingGuard::MappingGuard(MappingGuard&& other) noexcept : place_(std::exchange(other.place_, -1)) {}

MappingGuard& MappingGuard::operator=(MappingGuard&& other) noexcept {
  std::swap(place_, other.place_);
  return *this;
}

bool MappingGuard::hit() const { return place_ >= 0 && g_places[static_cast<std::size_t>(place_)].hit; }

}  // namespace squareq
