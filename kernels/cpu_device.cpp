#include <cstdlib>
#include <cstring>
#include <new>

#include "kernels/device.h"

namespace squareq {
namespace {

class CpuDevice : public Device {
 public:
  explicit CpuDevice(int threads) : ops_(make_cpu_ops(threads)) {}

  std::string name() const override { return "cpu"; }
  std::string choices() const override { return ""; }
  bool reads_host_memory() const override { return true; }
  Ops& ops() override { return *ops_; }

  Buffer allocate(std::size_t bytes) override {
    constexpr std::size_t kPage = 4096;
    const std::size_t rounded = (bytes + kPage - 1) / kPage * kPage;
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(kPage, std::max(rounded, kPage)));
    if (memory == nullptr) throw std::bad_alloc();
    return {memory, [](std::byte* p) { std::free(p); }};
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
  std::unique_ptr<Ops> ops_;
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(int threads) { return std::make_unique<CpuDevice>(threads); }

}  // namespace squareq
