#include "engine/schedule.h"

#include <cmath>
#include <limits>

#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using squareq::test::contains;

TEST_CASE("learning-rate schedules and clipping") {
  TrainingConfig config;
  config.steps = 110;
  config.warmup_steps = 10;
  config.learning_rate = 2.0;
  const auto near = [&](std::int64_t step, double expected) {
    return std::fabs(learning_rate(config, step) - expected) <= 1e-12;
  };
  CHECK(near(5, 1.0));
  CHECK(near(60, 2.0));
  config.lr_schedule = TrainingConfig::Schedule::kLinear;
  CHECK(near(61, 1.0));
  config.lr_end = 0.5;
  CHECK(near(61, 1.5));
  config.lr_end = 0.0;
  config.lr_schedule = TrainingConfig::Schedule::kCosine;
  CHECK(near(61, 1.0));
  CHECK(near(11, 2.0));
  config.lr_schedule = TrainingConfig::Schedule::kCosineRestarts;
  config.lr_cycles = 4;  // of 25 steps
  CHECK(near(11, 2.0));
  CHECK(near(11 + 5, 1.0 + std::cos(M_PI / 5.0)));
  CHECK(near(36, 2.0));
  CHECK(near(36 + 5, 1.0 + std::cos(M_PI / 5.0)));
  config.lr_schedule = TrainingConfig::Schedule::kPolynomial;
  config.lr_power = 2.0;
  CHECK(near(61, 0.5));
  CHECK(clip_factor(4.0, 1.0) == 0.25);
  CHECK(clip_factor(0.5, 1.0) == 1.0);
  CHECK(clip_factor(4.0, 0.0) == 1.0);
}

TEST_CASE("the running average follows quickly at first") {
  CHECK(std::fabs(average_weight(0.99, 1) - 9.0 / 11.0) <= 1e-12);
  CHECK(std::fabs(average_weight(0.99, 100000) - 0.01) <= 1e-12);
}

TEST_CASE("what is not finite, or a spike once norms are known, is skipped") {
  TrainingConfig config;
  config.spike_factor = 10.0;
  const double infinity = std::numeric_limits<double>::infinity();
  GuardMemory guard;
  CHECK(contains(reason_to_skip(config, guard, std::nan(""), 1.0), "loss nan"));
  CHECK(contains(reason_to_skip(config, guard, 1.0, infinity), "gradient norm inf"));
  for (int i = 0; i < 20; ++i) {
    CHECK(reason_to_skip(config, guard, 1.0, 1e6).empty());
    remember(guard, i % 2 == 0 ? 1.0 : 3.0);
  }
  CHECK(std::fabs(guard.mean_norm - 2.0) <= 0.1);
  CHECK(reason_to_skip(config, guard, 1.0, 15.0).empty());
  CHECK(contains(reason_to_skip(config, guard, 1.0, 25.0), "running mean"));
  config.spike_factor = 0.0;
  CHECK(reason_to_skip(config, guard, 1.0, 1e6).empty());
}
