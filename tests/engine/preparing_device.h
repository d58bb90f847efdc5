// A device on the CPU that wants copies of INT8 weights, in float32. Its linears compute from what is stored, and
// compare the copy with it where there is one.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/device.h"

namespace squareq::test {

class PreparingOps : public CpuOps {
 public:
  PreparingOps() : CpuOps(1) {}

  std::map<const std::byte*, int> writes, reads;  // by copy
  int wrong = 0;                                  // copies with other values, or of another shape

  View prepared_form(const Weight& weight) const override {
    if (weight.codec != Codec::kInt8Rows) return {};
    return {nullptr, DType::F32, 1, weight.out(), weight.in()};
  }
  void prepare(const Weight& weight, View to) override {
    ++writes[to.data];
    for (std::int64_t o = 0; o < weight.out(); ++o) {
      for (std::int64_t i = 0; i < weight.in(); ++i) to.f32(0, o)[i] = value(weight, o, i);
    }
  }
  void linear(const LinearForward& p) override {
    check(p.weight);
    CpuOps::linear(p);
  }
  void linear_backward(const LinearBackward& p) override {
    check(p.weight);
    CpuOps::linear_backward(p);
  }

 private:
  static float value(const Weight& weight, std::int64_t o, std::int64_t i) {
    return weight.scales.f32()[o] *
           static_cast<float>(static_cast<std::int8_t>(weight.values.data[o * weight.in() + i]));
  }
  void check(const Weight& weight) {
    if (!weight.prepared) return;
    ++reads[weight.prepared.data];
    bool equal = same_shape(weight.prepared, weight.values);
    for (std::int64_t o = 0; equal && o < weight.out(); ++o) {
      for (std::int64_t i = 0; i < weight.in(); ++i)
        equal = equal && weight.prepared.f32(0, o)[i] == value(weight, o, i);
    }
    if (!equal) ++wrong;
  }
};

class PreparingDevice : public Device {
 public:
  // `in_place`: are weights that stay read where the slab is mapped?
  explicit PreparingDevice(bool in_place) : in_place_(in_place) {}

  std::size_t free = std::size_t{1} << 30U;

  std::string name() const override { return "preparing"; }
  std::string choices() const override { return ""; }
  std::string identity() const override { return name(); }
  bool reads_host_memory() const override { return in_place_; }
  PreparingOps& ops() override { return ops_; }
  Buffer allocate(std::size_t bytes) override { return cpu_->allocate(bytes); }
  std::int64_t allocations() const override { return cpu_->allocations(); }
  DeviceMemory memory() const override { return {.total = free, .free = free, .ours = cpu_->memory().ours}; }
  Transfers& transfers() override { return cpu_->transfers(); }
  void upload(const void* from, View to) override { cpu_->upload(from, to); }
  void download(ConstView from, void* to) override { cpu_->download(from, to); }
  void synchronize() override {}

 private:
  bool in_place_;
  std::unique_ptr<Device> cpu_ = make_cpu_device(1);
  PreparingOps ops_;
};

}  // namespace squareq::test
