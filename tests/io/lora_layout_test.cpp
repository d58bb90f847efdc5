#include "io/lora_layout.h"

#include <algorithm>
#include <cmath>

#include "io/safetensors.h"
#include "tests/catch.h"
#include "tests/io/lora_adapters.h"

using namespace squareq;
using test::adapter;
using test::check_same_deltas;
using test::small;

namespace {

const std::string kQkv = "double_blocks.1.img_attn.qkv";
const std::string kLinear1 = "single_blocks.0.linear1";

std::vector<LoraAdapter> to(LoraNaming naming, std::vector<LoraAdapter> adapters) {
  return arrange_adapters(std::move(adapters), small(), naming);
}

// One on every linear of the blocks, as kohya trains.
std::vector<LoraAdapter> fused(float alpha) {
  std::vector<LoraAdapter> adapters;
  std::uint32_t stream = 0;
  for (const LinearSize& linear : flux_linears(small())) {
    if (!test::contains(linear.name, "_blocks.")) continue;
    adapters.push_back(adapter(linear.name, 0, linear.out, linear.in, 4, alpha, stream += 2));
  }
  return adapters;
}

// One on every part, as diffusers trains.
std::vector<LoraAdapter> split() {
  std::vector<LoraAdapter> adapters;
  std::uint32_t stream = 1000;
  for (const LinearSize& linear : flux_linears(small())) {
    if (!test::contains(linear.name, "_blocks.")) continue;
    for (const ModulePart& part : module_parts(linear.name, linear.out, small())) {
      adapters.push_back(adapter(linear.name, part.row_begin, part.rows, linear.in, 4, 4.0F, stream += 2));
    }
  }
  return adapters;
}

bool same(const std::vector<LoraAdapter>& a, const std::vector<LoraAdapter>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const LoraAdapter& x, const LoraAdapter& y) {
    return x.linear == y.linear && x.row_begin == y.row_begin && x.rows == y.rows && x.rank == y.rank &&
           x.alpha == y.alpha && x.down == y.down && x.up == y.up;
  });
}

}  // namespace

TEST_CASE("lora layout: fused adapters go to parts that share A, and back to the same numbers") {
  const std::vector<LoraAdapter> original = fused(4.0F);
  const std::vector<LoraAdapter> parts = to(LoraNaming::kPeft, original);
  CHECK(parts.size() == 2 * (2 * (3 + 4)) + 6);
  CHECK(std::all_of(parts.begin(), parts.end(), [](const auto& p) { return p.rank == 4 && p.alpha == 4.0F; }));
  check_same_deltas(parts, original, small(), 0.0);
  CHECK(same(to(LoraNaming::kKohya, parts), original));
}

TEST_CASE("lora layout: a scale that is a power of two is folded without a trace") {
  const float alpha = GENERATE(1.0F, 2.0F, 16.0F);
  const std::vector<LoraAdapter> original = fused(alpha);
  const std::vector<LoraAdapter> parts = to(LoraNaming::kPeft, original);
  CHECK(parts.front().scale() == 1.0F);
  check_same_deltas(parts, original, small(), 0.0);
  check_same_deltas(to(LoraNaming::kKohya, parts), original, small(), 0.0);
}

TEST_CASE("lora layout: split adapters go to diagonal blocks, and back to the same numbers") {
  const std::vector<LoraAdapter> original = split();
  const std::vector<LoraAdapter> joined = to(LoraNaming::kKohya, original);
  const auto qkv = std::find_if(joined.begin(), joined.end(), [](const auto& a) { return a.linear == kQkv; });
  REQUIRE(qkv != joined.end());
  CHECK(qkv->rank == 12);
  CHECK(qkv->alpha == 12.0F);
  // Rows of q have nothing in the columns of k and v.
  CHECK(std::all_of(qkv->up.begin() + 4, qkv->up.begin() + 12, [](float v) { return v == 0.0F; }));
  check_same_deltas(joined, original, small(), 0.0);
  CHECK(same(to(LoraNaming::kPeft, joined), original));
}

TEST_CASE("lora layout: through files of both namings") {
  const test::TempDir dir;
  const DType dtype = GENERATE(DType::F32, DType::BF16);
  const auto through = [&](const std::vector<LoraAdapter>& adapters, LoraNaming naming) {
    test::save(dir.file("l"), adapters, small(), dtype, {}, naming);
    const LoraFile file = read_lora(dir.file("l"), small());
    CHECK(file.naming == naming);
    CHECK(file.dtype == dtype);
    CHECK(file.unmapped.empty());
    return file.adapters;
  };
  std::vector<LoraAdapter> all = fused(2.0F);
  all.push_back(adapter("final_layer.adaLN_modulation.1", 0, 16, 8, 4, 2.0F, 501));
  all.push_back(adapter("img_in", 0, 8, 4, 4, 2.0F, 503));
  const std::vector<LoraAdapter> stored = through(all, LoraNaming::kKohya);
  const std::vector<LoraAdapter> peft = through(stored, LoraNaming::kPeft);
  check_same_deltas(peft, stored, small(), 0.0);
  check_same_deltas(through(peft, LoraNaming::kKohya), stored, small(), 0.0);

  test::save(dir.file("l"), stored, small(), dtype, {}, LoraNaming::kPeft);
  const SafetensorsFile raw(dir.file("l"));
  CHECK(raw.find("transformer.transformer_blocks.1.attn.add_v_proj.lora_A.weight") != nullptr);
  CHECK(raw.find("transformer.norm_out.linear.lora_B.weight") != nullptr);
  CHECK(std::none_of(raw.tensors().begin(), raw.tensors().end(),
                     [](const TensorInfo& t) { return t.name.ends_with(".alpha"); }));
}

TEST_CASE("lora layout: the final modulation has its halves swapped in PEFT files") {
  const test::TempDir dir;
  const LoraAdapter a = adapter("final_layer.adaLN_modulation.1", 0, 16, 8, 1, 1.0F, 1);
  test::save(dir.file("l"), {a}, small(), DType::F32, {}, LoraNaming::kPeft);
  const std::vector<float> up = SafetensorsFile(dir.file("l")).read_f32("transformer.norm_out.linear.lora_B.weight");
  REQUIRE(up.size() == 16);
  CHECK(up[0] == a.up[8]);
  CHECK(up[8] == a.up[0]);
}

TEST_CASE("lora layout: one rank in a PEFT file, and the padding goes away again") {
  std::vector<LoraAdapter> mixed{adapter("double_blocks.0.img_attn.proj", 0, 8, 8, 2, 2.0F, 1),
                                 adapter("double_blocks.0.img_mlp.0", 0, 24, 8, 5, 5.0F, 3),
                                 adapter(kQkv, 8, 8, 8, 3, 3.0F, 5)};
  const std::vector<LoraAdapter> parts = to(LoraNaming::kPeft, mixed);
  REQUIRE(parts.size() == 3);
  CHECK(std::all_of(parts.begin(), parts.end(), [](const auto& p) { return p.rank == 5 && p.alpha == 5.0F; }));
  check_same_deltas(parts, mixed, small(), 0.0);
  const std::vector<LoraAdapter> back = to(LoraNaming::kKohya, parts);
  CHECK(back.at(0).rank == 2);
  CHECK(back.at(1).rank == 5);
  CHECK(back.at(2).rank == 3);
  CHECK(back.at(2).rows == 24);
  check_same_deltas(back, mixed, small(), 0.0);
}

TEST_CASE("lora layout: a joined adapter without its last parts keeps blocks for them") {
  std::vector<LoraAdapter> adapters;
  for (std::int64_t part = 0; part < 3; ++part) {
    adapters.push_back(adapter(kLinear1, 8 * part, 8, 8, 2, 1.0F, static_cast<std::uint32_t>(10 + 2 * part)));
  }
  const std::vector<LoraAdapter> joined = to(LoraNaming::kKohya, adapters);
  REQUIRE(joined.size() == 1);
  CHECK(joined[0].rank == 8);  // four parts of rank 2
  CHECK(joined[0].scale() == 0.5F);
  check_same_deltas(joined, adapters, small(), 1e-7);
  CHECK(same(to(LoraNaming::kKohya, joined), joined));
  const std::vector<LoraAdapter> parts = to(LoraNaming::kPeft, joined);
  CHECK(parts.size() == 3);
  CHECK(parts[0].rank == 2);
}

TEST_CASE("lora layout: several adapters on the same rows add up") {
  const LoraAdapter whole = adapter(kQkv, 0, 24, 8, 4, 4.0F, 1);
  SECTION("with terms of their own") {
    const std::vector<LoraAdapter> both{whole, adapter(kQkv, 8, 8, 8, 2, 1.0F, 5), adapter(kQkv, 0, 24, 8, 3, 6.0F, 9)};
    const LoraNaming naming = GENERATE(LoraNaming::kKohya, LoraNaming::kPeft);
    check_same_deltas(to(naming, both), both, small(), 1e-6);
    CHECK(to(LoraNaming::kKohya, both)[0].rank == 9);
  }
  SECTION("with the same terms") {
    LoraAdapter other = whole;
    for (float& value : other.up) value *= -0.25F;
    const std::vector<LoraAdapter> merged = to(LoraNaming::kKohya, {whole, other});
    REQUIRE(merged.size() == 1);
    CHECK(merged[0].rank == 4);
    check_same_deltas(merged, {whole, other}, small(), 1e-6);
  }
}

TEST_CASE("lora layout: the adapter on some rows") {
  const LinearSize qkv{kQkv, 24, 8};
  const std::vector<LoraAdapter> adapters{adapter(kQkv, 0, 24, 8, 4, 2.0F, 1)};
  const auto k = adapter_on_rows(adapters, qkv, 8, 8);
  REQUIRE(k);
  CHECK(k->rank == 4);
  CHECK(k->scale() == 0.5F);  // not folded
  CHECK(std::equal(k->up.begin(), k->up.end(), adapters[0].up.begin() + 8 * 4));
  CHECK(!adapter_on_rows(adapters, {"double_blocks.0.img_attn.qkv", 24, 8}, 0, 8));
}

TEST_CASE("lora layout: adapters that do nothing keep their places only among themselves") {
  LoraAdapter idle = adapter(kQkv, 0, 24, 8, 4, 4.0F, 1);
  std::fill(idle.up.begin(), idle.up.end(), 0.0F);
  const LoraAdapter other = adapter("double_blocks.0.img_attn.proj", 0, 8, 8, 4, 4.0F, 3);
  CHECK(to(LoraNaming::kPeft, {idle, other}).size() == 1);
  CHECK(to(LoraNaming::kPeft, {idle}).size() == 3);
  CHECK(to(LoraNaming::kKohya, {idle}).at(0).rank == 4);
}
