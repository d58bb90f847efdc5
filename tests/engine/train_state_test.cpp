#include "engine/train_state.h"

#include <vector>

#include "kernels/base/random.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using namespace squareq::test;

namespace {

// Adapters with memory of their own, all numbers random.
struct Adapters {
  LoraSet lora;
  std::vector<std::byte> memory;

  Adapters(std::int64_t width, std::uint32_t stream)
      : lora({{.linear = "linear", .rows = width, .in = width, .rank = width}}) {
    Carver measure;
    lora.layout(measure);
    memory.resize(measure.used() + Carver::kAlignment);
    auto* begin = memory.data();
    while (reinterpret_cast<std::uintptr_t>(begin) % Carver::kAlignment != 0) ++begin;
    Carver carver(begin, measure.used());
    lora.layout(carver);
    for (const auto& [name, view] : lora.learnt()) {
      Random({.purpose = Purpose::kTest, .module = stream++})
          .fill_normal({reinterpret_cast<float*>(view.data), static_cast<std::size_t>(view.count())});
    }
  }
};

}  // namespace

TEST_CASE("a state of more numbers than are copied at a time comes back as it was") {
  constexpr std::int64_t kWidth = 1500;  // 18 MB of parameters
  const TempDir folder;
  const std::unique_ptr<Device> device = make_cpu_device(1);
  const Adapters saved(kWidth, 0);
  Adapters restored(kWidth, 10);
  TrainState state{.config = "{}", .model = "model", .data = "data"};
  state.progress.step = 2;
  state.progress.losses = {0.5, 0.25};
  save_state(folder.file("x.state"), *device, saved.lora, state);
  const StateFile file(folder.file("x.state"));
  file.restore(*device, restored.lora);
  CHECK(file.state().progress.losses == state.progress.losses);
  const auto before = saved.lora.learnt();
  const auto after = restored.lora.learnt();
  for (std::size_t i = 0; i < before.size(); ++i) {
    INFO(before[i].first);
    const View &a = before[i].second, &b = after[i].second;
    CHECK(std::equal(a.data, a.data + a.bytes(), b.data, b.data + b.bytes()));
  }
}
