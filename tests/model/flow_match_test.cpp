#include "model/flow_match.h"

#include <algorithm>
#include <cmath>

#include "model/sequence.h"
#include "tests/catch.h"

using namespace squareq;

namespace {

void check_schedule(std::int64_t steps, const ScheduleShift& shift, std::int64_t tokens,
                    const std::vector<double>& expected) {
  const std::vector<double> sigmas = sigma_schedule(steps, shift, tokens);
  REQUIRE(sigmas.size() == expected.size());
  for (std::size_t i = 0; i < sigmas.size(); ++i) CHECK(std::fabs(sigmas[i] - expected[i]) <= 1e-6);
}

double median_sigma(const TimestepSettings& settings, std::int64_t tokens) {
  std::vector<double> values;
  Random random({.seed = 3});
  for (int i = 0; i < 20001; ++i) values.push_back(sample_sigma(random, settings, tokens));
  for (const double v : values) REQUIRE((v > 0.0 && v <= 1.0));
  std::nth_element(values.begin(), values.begin() + 10000, values.end());
  return values[10000];
}

}  // namespace

TEST_CASE("sampling schedules are those of the original code") {
  check_schedule(4, {}, 4096, {1, 0.904531, 0.759511, 0.512844, 0});
  check_schedule(4, {}, 1024, {1, 0.849235, 0.652489, 0.384945, 0});
  check_schedule(8, {}, 2304, {1, 0.942273, 0.874931, 0.795352, 0.699867, 0.583180, 0.437345, 0.249882, 0});
  check_schedule(4, {.dynamic = false}, 4096, {1, 0.75, 0.5, 0.25, 0});
}

TEST_CASE("training noise levels have the median of their rule") {
  CHECK(std::fabs(median_sigma({.kind = TimestepSampling::kUniform}, 64) - 0.5) <= 0.02);
  CHECK(std::fabs(median_sigma({.kind = TimestepSampling::kSigmoid}, 64) - 0.5) <= 0.02);
  CHECK(std::fabs(median_sigma({.kind = TimestepSampling::kLogitNormal, .logit_mean = 1.0}, 64) - 0.731059) <= 0.02);
  CHECK(std::fabs(median_sigma({.kind = TimestepSampling::kShift, .shift = 3.0}, 64) - 0.75) <= 0.02);
  CHECK(std::fabs(median_sigma({.kind = TimestepSampling::kSigma, .shift = 3.0}, 64) - 0.75) <= 0.02);
  CHECK(std::fabs(median_sigma({.kind = TimestepSampling::kContent}, 64) - 0.875) <= 0.02);
  CHECK(std::fabs(median_sigma({.kind = TimestepSampling::kStyle}, 64) - 0.125) <= 0.02);
  const TimestepSettings narrow{.kind = TimestepSampling::kUniform, .sigma_min = 0.2, .sigma_max = 0.4};
  CHECK(std::fabs(median_sigma(narrow, 64) - 0.3) <= 0.01);
  const double s = std::exp(1.15);
  CHECK(std::fabs(median_sigma({.kind = TimestepSampling::kFluxShift}, 4096) - s / (1.0 + s)) <= 0.02);
}

// The density of the mode scheme, by the formula for it: 1 / |du' / du| where u' = sigma.
TEST_CASE("the mode scheme prefers the middle as its formula says") {
  const double q = 1.29;
  const auto level = [&](double u) {  // of a fall in u without the shift
    const double c = std::cos(M_PI * u / 2.0);
    return u + q * (c * c - 1.0 + u);
  };
  Random random({.seed = 4});
  const TimestepSettings settings{.kind = TimestepSampling::kMode, .shift = 1.0, .mode_scale = q};
  int below = 0;
  for (int i = 0; i < 20000; ++i) below += sample_sigma(random, settings, 64) <= level(0.25) ? 1 : 0;
  CHECK(std::abs(below - 5000) <= 250);
}

TEST_CASE("weights of noise levels follow their formulae") {
  CHECK(loss_weight(LossWeighting::kNone, 0.3) == 1.0);
  CHECK(std::fabs(loss_weight(LossWeighting::kSigmaSqrt, 0.5) - 4.0) <= 1e-12);
  CHECK(std::fabs(loss_weight(LossWeighting::kCosmap, 0.5) - 4.0 / M_PI) <= 1e-12);
  double mean = 0.0, lowest = 1.0;
  for (int j = 0; j < 1000; ++j) {
    const double weight = loss_weight(LossWeighting::kBell, (j + 0.5) / 1000.0);
    mean += weight / 1000.0;
    lowest = std::min(lowest, weight);
  }
  CHECK(std::fabs(mean - 1.0) <= 1e-5);
  CHECK((lowest >= 0.0 && lowest <= 0.01));
  CHECK(loss_weight(LossWeighting::kBellFlat, 0.2) == loss_weight(LossWeighting::kBell, 0.5));
  CHECK(loss_weight(LossWeighting::kBellFlat, 0.7) == loss_weight(LossWeighting::kBell, 0.7));
}

TEST_CASE("offset noise shifts all values of a latent channel alike") {
  std::vector<float> noise(3 * 8);
  Random random({.seed = 5});
  offset_noise(noise, 8, 0.5, random);
  for (std::size_t i = 0; i < noise.size(); ++i) CHECK(noise[i] == noise[i % 8 / 4 * 4]);
  CHECK(noise[0] != noise[4]);
}

TEST_CASE("noise mixing and target are inverse to each other") {
  const std::vector<float> data{1.0F, -2.0F};
  const std::vector<float> noise{0.5F, 4.0F};
  std::vector<float> mixed(2), target(2);
  mix_noise(data, noise, 0.25F, mixed);
  velocity_target(data, noise, target);
  for (std::size_t i = 0; i < 2; ++i) CHECK(std::fabs(mixed[i] - 0.25F * target[i] - data[i]) <= 1e-6F);
}

TEST_CASE("positions and rotary tables follow the original code") {
  const Sequence s = make_sequence(2, {2, 3}, {{1, 2}});
  REQUIRE(s.total() == 10);
  CHECK(s.output == 6);
  CHECK(s.positions[1] == Position{0, 0, 0});
  CHECK(s.positions[2 + 5] == Position{0, 1, 2});
  CHECK(s.positions[9] == Position{1, 0, 1});

  std::vector<float> cosine, sine;
  rotary_table({{1, 5, 63}}, {16, 56, 56}, 10000.0, cosine, sine);
  REQUIRE(cosine.size() == 64);
  const auto check = [&](std::size_t pair, double c, double sn) {
    CHECK(std::fabs(static_cast<double>(cosine[pair]) - c) <= 1e-6);
    CHECK(std::fabs(static_cast<double>(sine[pair]) - sn) <= 1e-6);
  };
  check(0, 0.540302, 0.841471);
  check(7, 1.000000, 0.000316);
  check(8, 0.283662, -0.958924);
  check(9, -0.897453, -0.441111);
  check(36, 0.985897, 0.167356);
  check(63, 0.999962, 0.008754);
}
