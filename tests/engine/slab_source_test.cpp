#include "engine/slab_source.h"

#include <algorithm>

#include "tests/catch.h"

using namespace squareq;

namespace {

// Parts of many sizes, every third of them loaded once.
std::vector<SlabPart> some_parts() {
  std::vector<SlabPart> parts;
  for (std::size_t i = 0; i < 90; ++i) parts.push_back({.bytes = 1000 + 777 * (i * 7 % 13), .streamed = i % 3 != 1});
  return parts;
}

std::size_t bytes_of(const std::vector<SlabPart>& parts) {
  std::size_t bytes = 0;
  for (const SlabPart& part : parts) bytes += part.streamed ? part.bytes : 0;
  return bytes;
}

}  // namespace

TEST_CASE("as many streamed parts are cached as the page cache holds, evenly spread") {
  const std::vector<SlabPart> parts = some_parts();
  const std::size_t total = bytes_of(parts);
  const std::size_t largest = std::ranges::max(parts, {}, &SlabPart::bytes).bytes;
  for (const std::size_t budget : {total / 100, total / 3, total / 2, total * 9 / 10, total - 1}) {
    INFO("budget " << budget << " of " << total);
    const std::vector<bool> cached = cached_parts(parts, budget);
    REQUIRE(cached.size() == parts.size());
    std::size_t seen = 0;
    std::size_t taken = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (!parts[i].streamed) {
        CHECK_FALSE(cached[i]);
        continue;
      }
      seen += parts[i].bytes;
      taken += cached[i] ? parts[i].bytes : 0;
      const std::size_t share = budget * seen / total;
      INFO("part " << i << ", " << taken << " of " << seen);
      CHECK(taken <= share);
      CHECK(taken + largest > share);
    }
    CHECK(taken <= budget);
  }
}

TEST_CASE("no part is cached without a page cache, and every streamed one if it holds all") {
  const std::vector<SlabPart> parts = some_parts();
  for (const bool all : {false, true}) {
    const std::size_t budget = all ? bytes_of(parts) : 0;
    const std::vector<bool> cached = cached_parts(parts, budget);
    for (std::size_t i = 0; i < parts.size(); ++i) CHECK(cached[i] == (all && parts[i].streamed));
    CHECK(cached_parts(parts, 2 * budget) == cached);
  }
  CHECK(cached_parts({}, 1000).empty());
}
