#include "tests/cuda/both.h"

namespace squareq::test {
namespace {

// A product through cuBLASLt: bfloat16 weights, without adapters.
struct Product {
  Twin x{2, 96, 256, 1}, weight{1, 320, 256, 2}, y{2, 96, 320, 3};

  void operator()(Ops& ops, View Twin::*at) const {
    const Weight w{.values = weight.*at};
    ops.linear({.x = x.*at, .weight = w, .y = y.*at});
  }
};

// Runs it on a device, after choosing kernels if `tune` is set.
void run(Device& device, const Product& product, bool tune) {
  Ops& ops = device.ops();
  const std::size_t scratch = ops.scratch_need([&] { product(ops, &Twin::cuda); });
  constexpr std::size_t kMemory = std::size_t{64} << 20;
  REQUIRE(scratch <= kMemory);
  const Buffer memory = device.allocate(kMemory);
  const View region(memory.get(), DType::U8, 1, 1, static_cast<std::int64_t>(kMemory));
  if (tune) ops.tune(region);
  ops.use_scratch(region);
  product(ops, &Twin::cuda);
  ops.use_scratch({});
  device.synchronize();
}

}  // namespace

TEST_CASE("kernels are chosen by timing, compute the same, and can be chosen again in another process") {
  if (!gpu()) return;
  Product product;
  product(cpu_ops(), &Twin::cpu);
  const std::unique_ptr<Device> first = make_cuda_device();
  run(*first, product, true);
  CHECK(product.y.error() <= rounded_once(DType::BF16));
  const std::vector<std::byte> result = bytes_of(product.y.cuda);
  const std::string choices = first->ops().kernel_choices();
  CHECK(choices.find('=') != std::string::npos);
  CHECK(choices.find('\n') == std::string::npos);

  const std::unique_ptr<Device> second = make_cuda_device();
  CHECK(second->ops().kernel_choices() != choices);
  second->ops().restore_kernel_choices(choices);
  CHECK(second->ops().kernel_choices() == choices);
  run(*second, product, true);  // finds nothing left to choose
  CHECK(second->ops().kernel_choices() == choices);
  CHECK(bytes_of(product.y.cuda) == result);
}

TEST_CASE("choices of another device, and damaged ones, are refused") {
  if (!gpu()) return;
  const std::unique_ptr<Device> device = make_cuda_device();
  Ops& ops = device->ops();
  const Product product;
  run(*device, product, true);
  const std::string choices = ops.kernel_choices();
  for (const std::string& bad :
       {std::string("another GPU"), choices + ";1 2 3", choices.substr(0, choices.size() - 3) + "x", choices + " 7"}) {
    CHECK_THROWS_AS(ops.restore_kernel_choices(bad), FormatError);
  }
  CHECK(ops.kernel_choices() == choices);
}

TEST_CASE("a profile of families adds up to what was called") {
  if (!gpu()) return;
  const Product product;
  const KernelTimes times = gpu()->profile([&] { on_gpu([&](Ops& ops) { product(ops, &Twin::cuda); }); });
  const FamilyTime& linears = times[static_cast<std::size_t>(KernelFamily::kLinear)];
  CHECK(linears.seconds > 0.0);
  CHECK(linears.work == 2.0 * 2 * 96 * 256 * 320);
  CHECK(times[static_cast<std::size_t>(KernelFamily::kAdapter)].seconds == 0.0);
  const KernelTimes nothing = gpu()->profile([] {});
  CHECK(nothing[static_cast<std::size_t>(KernelFamily::kLinear)].seconds == 0.0);
}

}  // namespace squareq::test
