#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>

#include "kernels/device.h"

namespace squareq {
namespace {

Buffer allocate_pages(std::size_t bytes) {
  constexpr std::size_t kPage = 4096;
  const std::size_t rounded = (bytes + kPage - 1) / kPage * kPage;
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(kPage, std::max(rounded, kPage)));
  if (memory == nullptr) throw std::bad_alloc();
  return {memory, [](std::byte* p) { std::free(p); }};
}

struct CpuEvent : Event {
  std::chrono::steady_clock::time_point time;
};

// Everything is done when it is asked for, so no event has to be waited for.
class CpuTransfers : public Transfers {
 public:
  std::unique_ptr<Event> make_event(bool) override { return std::make_unique<CpuEvent>(); }
  void copy(const std::byte* from, std::byte* to, std::size_t bytes) override { std::memcpy(to, from, bytes); }
  void record(Event& event, Stream) override { static_cast<CpuEvent&>(event).time = std::chrono::steady_clock::now(); }
  void wait(Stream, const Event&) override {}
  void wait(const Event&) override {}
  double seconds(const Event& from, const Event& to) const override {
    return std::chrono::duration<double>(static_cast<const CpuEvent&>(to).time -
                                         static_cast<const CpuEvent&>(from).time)
        .count();
  }
  Buffer allocate_pinned(std::size_t bytes) override { return allocate_pages(bytes); }
  std::unique_ptr<Registration> register_memory(std::span<const std::byte>) override {
    return std::make_unique<Registration>();
  }
};

class CpuDevice : public Device {
 public:
  explicit CpuDevice(int threads) : threads_(threads), ops_(make_cpu_ops(threads)) {}

  std::string name() const override { return "cpu"; }
  std::string choices() const override { return ""; }
  std::string identity() const override {
    return "cpu with " + std::to_string(std::thread::hardware_concurrency()) + " hardware threads, " +
           std::to_string(threads_) + " wanted";
  }
  bool reads_host_memory() const override { return true; }
  Ops& ops() override { return *ops_; }
  Transfers& transfers() override { return transfers_; }

  Buffer allocate(std::size_t bytes) override {
    Buffer buffer = allocate_pages(bytes);
    ++allocations_;
    *allocated_ += bytes;
    return {buffer.release(), [total = allocated_, bytes](std::byte* p) {
              *total -= bytes;
              std::free(p);
            }};
  }
  std::int64_t allocations() const override { return allocations_; }

  DeviceMemory memory() const override {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    return {.total = static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) * page,
            .free = static_cast<std::size_t>(sysconf(_SC_AVPHYS_PAGES)) * page,
            .ours = *allocated_};
  }

  void upload(const void* from, View to) override {
    if (!to.contiguous()) throw std::logic_error("Device::upload needs a contiguous view");
    std::memcpy(to.data, from, to.bytes());
  }

  void download(ConstView from, void* to) override {
    if (!from.contiguous()) throw std::logic_error("Device::download needs a contiguous view");
    std::memcpy(to, from.data, from.bytes());
  }

  void synchronize() override {}

 private:
  int threads_;
  std::unique_ptr<Ops> ops_;
  CpuTransfers transfers_;
  std::int64_t allocations_ = 0;
  std::shared_ptr<std::size_t> allocated_ = std::make_shared<std::size_t>(0);  // buffers may outlive the device
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(int threads) { return std::make_unique<CpuDevice>(threads); }

}  // namespace squareq
