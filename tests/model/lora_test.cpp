#include "model/lora.h"

#include <cmath>

#include "tests/catch.h"

using namespace squareq;

namespace {

LoraSet laid_out(std::vector<LoraTarget> targets, std::vector<float>& memory) {
  LoraSet set(std::move(targets));
  Carver measure;
  set.layout(measure);
  memory.assign(measure.used() / sizeof(float), 0.0F);
  Carver carver(reinterpret_cast<std::byte*>(memory.data()), measure.used());
  set.layout(carver);
  return set;
}

}  // namespace

TEST_CASE("trained adapters come first and only they have gradients") {
  std::vector<float> memory;
  const LoraSet set = laid_out({{.linear = "x", .rows = 4, .in = 3, .rank = 2, .trained = false},
                                {.linear = "x", .row_begin = 4, .rows = 4, .in = 3, .rank = 2},
                                {.linear = "y", .rows = 5, .in = 3, .rank = 1}},
                               memory);
  CHECK(set.trained_count() == 2 * (3 + 4) + 1 * (3 + 5));
  CHECK(set.count() == set.trained_count() + 2 * (3 + 4));
  CHECK(set.trains("x"));
  CHECK(!set.trains("z"));
  const std::vector<LoraBranch> branches = set.branches("x");
  REQUIRE(branches.size() == 2);
  CHECK(branches[0].trained());
  CHECK(branches[0].row_begin == 4);
  CHECK(!branches[1].trained());
  CHECK(set.gradients().count() == set.trained_count());
}

TEST_CASE("adapters of a linear are stacked in memory of the set") {
  LoraSet set({{.linear = "x", .row_begin = 4, .rows = 4, .in = 3, .out = 8, .rank = 2},
               {.linear = "y", .rows = 5, .in = 6, .out = 5, .rank = 20},
               {.linear = "x", .rows = 8, .in = 3, .out = 8, .rank = 5, .trained = false}},
              {.stacks = DType::BF16});
  Carver measure;
  set.layout(measure);
  std::vector<std::byte> memory(measure.used());
  Carver carver(memory.data(), memory.size());
  set.layout(carver);
  CHECK(set.branches().size() == 3);
  const std::vector<LoraBranch> x = set.branches("x"), y = set.branches("y");
  REQUIRE(x.size() == 2);
  CHECK(x[0].stacked_a.rows == 2);
  CHECK(x[1].stacked_a.rows == 14);
  CHECK(x[1].stacked_a.data == x[0].stacked_a.row_slice(1, 1).data + 3 * size_of(DType::BF16));
  CHECK(x[1].stacked_b.cols == 8);
  CHECK(y[0].stacked_b.rows == 32);
  CHECK(y[0].stacked_b.cols == 5);
}

TEST_CASE("initial adapters do nothing and have the deviation of their rule") {
  for (const LoraInit init : {LoraInit::kKaiming, LoraInit::kGaussian}) {
    std::vector<float> memory;
    LoraSet set = laid_out({{.linear = "x", .rows = 8, .in = 4000, .rank = 16}}, memory);
    set.initialise(
        init, 5, [](const std::vector<float>& from, const View& to) { std::copy(from.begin(), from.end(), to.f32()); });
    double squares = 0.0;
    double largest = 0.0;
    for (std::int64_t i = 0; i < set.a(0).count(); ++i) {
      const double value = static_cast<double>(set.a(0).f32()[i]);
      squares += value * value;
      largest = std::max(largest, std::fabs(value));
    }
    const double deviation = std::sqrt(squares / static_cast<double>(set.a(0).count()));
    const double bound = 1.0 / std::sqrt(4000.0);
    const double expected = init == LoraInit::kKaiming ? bound / std::sqrt(3.0) : 1.0 / 16.0;
    CHECK(std::fabs(deviation / expected - 1.0) <= 0.01);
    if (init == LoraInit::kKaiming) CHECK(largest <= bound);
    for (std::int64_t i = 0; i < set.b(0).count(); ++i) REQUIRE(set.b(0).f32()[i] == 0.0F);
  }
}
