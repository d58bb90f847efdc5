#include <algorithm>
#include <array>
#include <chrono>
#include <numeric>
#include <vector>

#include "engine/memory_plan.h"
#include "kernels/base/error.h"
#include "kernels/base/random.h"

namespace squareq {
namespace {

constexpr std::size_t kRepeats = 3;

double copy_rate(Device& device) {
  constexpr std::size_t kBytes = std::size_t{64} << 20U;
  Transfers& transfers = device.transfers();
  const Buffer host = transfers.allocate_pinned(kBytes);
  const Buffer memory = device.allocate(kBytes);
  const std::unique_ptr<Event> end = transfers.make_event();
  double best = 0.0;
  for (std::size_t i = 0; i <= kRepeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    transfers.copy(host.get(), memory.get(), kBytes);
    transfers.record(*end, Stream::kCopy);
    transfers.wait(*end);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = std::max(best, static_cast<double>(kBytes) / seconds);
  }
  return best;
}

// Inputs that are no zeros: those are faster than real data.
void fill_inputs(FluxEngine& engine) {
  const flux::State& state = engine.state();
  std::uint32_t stream = 0;
  for (const View& view : {state.img, state.txt, state.y, state.dprediction}) {
    std::vector<float> values(static_cast<std::size_t>(view.count()));
    Random({.purpose = Purpose::kTest, .module = stream++}).fill_normal(values);
    engine.device().upload(values.data(), view);
  }
}

BlockRates block_rates(FluxEngine& engine) {
  engine.initialise_lora(LoraInit::kKaiming, 0);
  fill_inputs(engine);
  double forward = 0.0;
  double backward = 0.0;
  for (const Stage& stage : engine.runner().stages()) {
    forward += stage.work.forward();
    if (stage.has_backward) backward += stage.work.backward();
  }
  // A device that was idle is faster for a moment than it stays: the second half of the runs counts.
  constexpr double kSeconds = 0.5;
  std::vector<double> up, down;
  for (double spent = 0.0; up.size() <= kRepeats || spent < kSeconds; spent += up.back() + down.back()) {
    engine.runner().measure();
    engine.forward();
    engine.backward();
    up.push_back(0.0);
    down.push_back(0.0);
    for (const StageTime& t : engine.runner().times()) {
      if (t.stage->work.forward() > 0.0) (t.backward ? down : up).back() += t.seconds;
    }
  }
  const std::size_t half = up.size() / 2;
  const auto mean = [&](const std::vector<double>& times) {
    return std::accumulate(times.end() - static_cast<std::ptrdiff_t>(half), times.end(), 0.0) /
           static_cast<double>(half);
  };
  return {.forward = forward / mean(up), .backward = backward / mean(down)};
}

// From data sheets: memory in GiB, TFLOP/s of dense bfloat16 products with float32 sums; GB/s of the PCI Express link.
struct Card {
  const char* name;
  double memory, products, copies;
};
constexpr std::array kCards{Card{"rtx3080-10gb", 10, 60, 25},   Card{"rtx3090", 24, 71, 25},
                            Card{"rtx4060ti-16gb", 16, 44, 13}, Card{"rtx4070", 12, 58, 25},
                            Card{"rtx4080", 16, 97, 25},        Card{"rtx4090", 24, 165, 25},
                            Card{"rtx5090", 32, 209, 50},       Card{"a100-40gb", 40, 312, 25},
                            Card{"a100-80gb", 80, 312, 25},     Card{"h100", 79, 989, 54}};
constexpr double kReached = 0.5;  // of the products' rate, by whole blocks; assumed
// What the driver takes later: 8 bytes of page table for each 4 KiB of a registered slab, and kernels at their first
// use.
constexpr std::size_t kBytesPerEntry = 512;
constexpr std::size_t kLateKernels = std::size_t{8} << 20U;
constexpr std::size_t kContext = std::size_t{600} << 20U;
constexpr std::size_t kScratch = std::size_t{256} << 20U;

}  // namespace

std::size_t driver_memory(const Device& device, const Slab& slab) {
  if (device.reads_host_memory()) return 0;
  return device.memory().ours + slab.file_bytes() / kBytesPerEntry + kLateKernels;
}

DeviceRates measure_rates(Device& device, const Slab& slab, const FluxRun& run) {
  DeviceRates rates{.name = device.name(), .copies = copy_rate(device)};
  FluxRun part = run;
  part.blocks_of_each_kind = 1;
  part.keep = Keep::kAll;
  part.kept = {};
  part.residency = {};
  part.forward_only.clear();
  part.guests.clear();
  const auto shorter = [](const Sequence& a, const Sequence& b) { return a.total() < b.total(); };
  part.sequences = {*std::max_element(run.sequences.begin(), run.sequences.end(), shorter)};
  {
    FluxEngine engine(device, slab, part);
    rates.blocks = rates.prepared = block_rates(engine);
    rates.scratch = engine.arena().scratch_bytes();
  }
  // Where not even these blocks' copies fit, no plan will have any.
  const FluxRun prepared = with_prepared_blocks(device, slab, part);
  if (!prepared.residency.prepared.empty() && fits(device, slab, prepared)) {
    FluxEngine engine(device, slab, prepared);
    // Less is done than without copies: what says otherwise is noise.
    const auto [forward, backward] = block_rates(engine);
    rates.prepared = {std::max(forward, rates.blocks.forward), std::max(backward, rates.blocks.backward)};
  }
  rates.memory = device.memory().total;
  rates.context = driver_memory(device, slab);
  return rates;
}

DeviceRates card_rates(const std::string& name) {
  std::string names;
  for (const Card& card : kCards) {
    if (name == card.name) {
      const double rate = card.products * 1e12 * kReached;
      return {.name = name,
              .projected = true,
              .memory = static_cast<std::size_t>(card.memory * 0x1p30),
              .context = kContext,
              .blocks = {rate, rate},
              .prepared = {rate, rate},
              .copies = card.copies * 1e9,
              .scratch = kScratch};
    }
    names += std::string(names.empty() ? "" : ", ") + card.name;
  }
  throw ConfigError({.where = "--card", .found = "'" + name + "'", .expected = "one of " + names, .advice = ""});
}

}  // namespace squareq
