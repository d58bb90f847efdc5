#include "engine/prefetch_queue.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "tests/catch.h"
#include "tests/engine/fake_transfers.h"
#include "tests/support.h"

using namespace squareq;
using namespace squareq::test;

namespace {

constexpr std::size_t kWords = 6;  // of a part

// Parts whose words all are the number of the part.
class Numbers : public PartSource {
 public:
  Numbers(Transfers& transfers, std::size_t parts, std::size_t pieces) : transfers_(transfers), pieces_(pieces) {
    for (std::size_t i = 0; i < parts; ++i) words_.emplace_back(kWords, i);
  }

  void fail_prepare(std::size_t part) { failing_ = part; }
  std::size_t loads() const { return loads_; }

  void prepare(std::size_t part) override {
    if (part == failing_) throw std::runtime_error("the part is damaged");
    const std::lock_guard lock(mutex_);
    if (!prepared_.insert(part).second) throw std::logic_error("prepared twice");
  }
  std::size_t pieces(std::size_t) const override { return pieces_; }
  void load(std::size_t part, std::size_t piece, std::byte* memory, const std::function<void()>& before_copy) override {
    {
      const std::lock_guard lock(mutex_);
      if (!prepared_.contains(part)) throw std::logic_error("loaded before it was prepared");
      loads_ += piece == 0 ? 1 : 0;
    }
    const std::size_t begin = piece * kWords / pieces_ * sizeof(std::size_t);
    const std::size_t end = (piece + 1) * kWords / pieces_ * sizeof(std::size_t);
    before_copy();
    transfers_.copy(reinterpret_cast<const std::byte*>(words_[part].data()) + begin, memory + begin, end - begin);
  }

 private:
  Transfers& transfers_;
  std::size_t pieces_;
  std::vector<std::vector<std::size_t>> words_;
  std::mutex mutex_;
  std::set<std::size_t> prepared_;
  std::size_t failing_ = static_cast<std::size_t>(-1);
  std::size_t loads_ = 0;
};

// A queue over `parts` of which those in `homes` stay, and a stream of operations that check what they read.
struct Bench {
  FakeTransfers transfers;
  Numbers source;
  std::vector<std::size_t> memory;
  std::size_t wrong = 0, done = 0;
  std::unique_ptr<PrefetchQueue> queue;

  Bench(std::uint32_t seed, std::size_t parts, std::size_t slots, const std::set<std::size_t>& homes,
        std::size_t pieces, std::size_t readers)
      : transfers(seed), source(transfers, parts, pieces), memory((slots + parts) * kWords) {
    const auto place = [&](std::size_t i) { return reinterpret_cast<std::byte*>(memory.data() + i * kWords); };
    std::vector<std::byte*> home(parts);
    std::vector<std::byte*> shared;
    for (std::size_t i = 0; i < slots; ++i) shared.push_back(place(i));
    for (const std::size_t part : homes) home[part] = place(slots + part);
    queue = std::make_unique<PrefetchQueue>(transfers, source, home, shared, readers);
  }

  void read(std::size_t part, const std::byte* from) {
    transfers.compute([this, part, words = reinterpret_cast<const std::size_t*>(from)] {
      if (std::any_of(words, words + kWords, [&](std::size_t word) { return word != part; })) ++wrong;
      ++done;
    });
  }
  void use(std::size_t part) {
    read(part, queue->acquire(part));
    queue->release(part);
  }
};

// Passes up and down with surprises; returns the uses made.
std::size_t random_schedule(Bench& bench, std::minstd_rand& random, std::size_t parts, std::size_t slots) {
  std::vector<std::size_t> up(parts);
  std::iota(up.begin(), up.end(), std::size_t{0});
  std::size_t uses = 0;
  for (std::uint32_t pass = 0; pass < 4; ++pass) {
    std::vector<std::size_t> order = up;
    if (random() % 8 == 0) std::shuffle(order.begin(), order.end(), random);
    if (pass % 2 == 1) std::reverse(order.begin(), order.end());
    std::vector<std::size_t> expected = order;
    expected.insert(expected.end(), order.rbegin(), order.rend());
    bench.queue->expect(expected);
    for (std::size_t i = 0; i < order.size();) {
      if (random() % 16 == 0) {  // out of turn
        bench.use(random() % parts);
        ++uses;
      }
      const std::size_t together =
          std::min<std::size_t>({order.size() - i, 1 + random() % 2, std::max<std::size_t>(slots, 1)});
      for (std::size_t j = i; j < i + together; ++j) bench.read(order[j], bench.queue->acquire(order[j]));
      for (std::size_t j = i; j < i + together; ++j) bench.queue->release(order[j]);
      i += together;
      uses += together;
    }
  }
  return uses;
}

}  // namespace

TEST_CASE("prefetch queue: in 10000 random schedules every operation reads the part that it acquired") {
  std::minstd_rand random(1);
  std::size_t failures = 0;
  for (std::uint32_t round = 0; round < 10000; ++round) {
    const std::size_t parts = 1 + random() % 7;
    const std::size_t slots = 1 + random() % parts;
    std::set<std::size_t> homes;
    for (std::size_t part = 0; part < parts; ++part) {
      if (random() % 4 == 0) homes.insert(part);
    }
    Bench bench(round, parts, slots, homes, 1 + random() % 3, 1 + random() % 3);
    const std::uint32_t fault = random() % 8;
    if (fault == 0) bench.transfers.fail_copy(random() % 20);
    if (fault == 1) bench.source.fail_prepare(random() % parts);
    std::size_t uses = 0;
    try {
      uses = random_schedule(bench, random, parts, slots);
      bench.transfers.drain();
      if (bench.done != uses) FAIL("round " << round << ": " << bench.done << " of " << uses << " operations ran");
    } catch (const std::runtime_error& error) {
      if (fault > 1) FAIL("round " << round << ": " << error.what());
      ++failures;
      bench.transfers.drain();
    }
    if (bench.wrong != 0) FAIL("round " << round << ": " << bench.wrong << " operations read other bytes");
  }
  CHECK(failures > 1000);  // faults reach the caller
}

TEST_CASE("prefetch queue: what a pass leaves in the slots serves the next one") {
  constexpr std::size_t kParts = 10;
  constexpr std::size_t kSlots = 4;
  Bench bench(3, kParts, kSlots, {5}, 1, 2);
  std::vector<std::size_t> up(kParts);
  std::iota(up.begin(), up.end(), std::size_t{0});
  const std::vector<std::size_t> down(up.rbegin(), up.rend());
  const auto pass = [&](const std::vector<std::size_t>& order, const std::vector<std::size_t>& after) {
    std::vector<std::size_t> both = order;
    both.insert(both.end(), after.begin(), after.end());
    bench.queue->expect(both);
    for (const std::size_t part : order) bench.use(part);
  };
  for (int step = 0; step < 3; ++step) {
    pass(up, down);
    pass(down, up);
  }
  bench.queue.reset();
  // Part 5 once; the other nine once at first, and then in each of six passes all that the slots do not hold, the last
  // pass preparing one that does not come.
  CHECK(bench.source.loads() == 1 + 9 + 5 * (9 - kSlots));
  bench.transfers.drain();
  CHECK(bench.wrong == 0);
}

TEST_CASE("prefetch queue: more parts at a time than there are slots is a mistake of the caller") {
  Bench bench(4, 3, 2, {}, 1, 1);
  bench.queue->acquire(0);
  bench.queue->acquire(1);
  CHECK_THROWS_AS(bench.queue->acquire(2), std::logic_error);
}
