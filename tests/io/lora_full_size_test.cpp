// Not part of a normal run: scripts/check-lora-diffusers.py calls it to get a LoRA file of full size.
#include <cstdlib>
#include <variant>

#include "io/lora_file.h"
#include "io/slab_build.h"
#include "io/tensor_names.h"
#include "tests/catch.h"
#include "tests/support.h"

namespace squareq {
namespace {

LoraAdapter random_adapter(const std::string& linear, std::int64_t row, std::int64_t rows, std::int64_t in,
                           std::uint32_t stream) {
  constexpr std::int64_t kRank = 4;
  LoraAdapter adapter{linear, row, rows, in, kRank, 2.0F, {}, {}};
  adapter.down.resize(static_cast<std::size_t>(kRank * in));
  adapter.up.resize(static_cast<std::size_t>(rows * kRank));
  test::fill_random(adapter.down, 2 * stream, 0.05F);
  test::fill_random(adapter.up, 2 * stream + 1, 0.05F);
  return adapter;
}

}  // namespace

TEST_CASE("Writes random adapters on all linears of FLUX.1-dev's blocks to $SQUAREQ_WRITE_LORA", "[.full-size]") {
  const char* path = std::getenv("SQUAREQ_WRITE_LORA");
  REQUIRE(path != nullptr);
  const auto shape = std::get<FluxShape>(named_shape("flux-dev"));
  std::vector<LoraAdapter> adapters;
  for (const LinearSize& linear : flux_linears(shape)) {
    if (linear.name.find("_blocks.") == std::string::npos) continue;
    const bool split = linear.name == "double_blocks.0.img_attn.qkv";  // one of them in three parts
    const std::int64_t rows = split ? linear.out / 3 : linear.out;
    for (std::int64_t row = 0; row < linear.out; row += rows) {
      adapters.push_back(
          random_adapter(linear.name, row, rows, linear.in, static_cast<std::uint32_t>(adapters.size())));
    }
  }
  write_lora(path, adapters, shape, DType::F32, lora_metadata({.rank = 4, .alpha = 2.0}));
}

}  // namespace squareq
