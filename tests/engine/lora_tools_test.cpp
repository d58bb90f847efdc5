#include "engine/lora_tools.h"

#include <algorithm>

#include "engine/saved_lora.h"
#include "io/lora_layout.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/io/lora_adapters.h"

using namespace squareq;
using test::adapter;
using test::check_same_deltas;
using test::contains;
using test::small;

TEST_CASE("lora tools: another rank") {
  std::vector<LoraAdapter> adapters{adapter("double_blocks.0.img_mlp.0", 0, 24, 8, 4, 2.0F, 1),
                                    adapter("img_in", 0, 8, 4, 4, 2.0F, 3)};
  const std::vector<LoraAdapter> original = adapters;
  SECTION("larger: the same") {
    for (const double kept : resize_adapters(adapters, 6)) CHECK(!(std::fabs(kept - 1.0) > 1e-6));
    CHECK(adapters[0].rank == 6);
    CHECK(adapters[0].scale() == 0.5F);
    check_same_deltas(adapters, original, small(), 1e-6);
  }
  SECTION("smaller: what is kept and what is lost make up the whole") {
    const std::vector<double> kept = resize_adapters(adapters, 2);
    for (std::size_t i = 0; i < 2; ++i) {
      const std::string& name = original[i].linear;
      const auto linears = flux_linears(small());
      const LinearSize& linear =
          *std::find_if(linears.begin(), linears.end(), [&](const LinearSize& l) { return l.name == name; });
      const double lost = test::relative_l2(test::delta(adapters, linear), test::delta(original, linear));
      CHECK(lost > 1e-3);
      CHECK(!(std::fabs(lost * lost + kept[i] * kept[i] - 1.0) > 1e-5));
    }
  }
}

TEST_CASE("lora tools: strengths") {
  std::vector<LoraAdapter> adapters{adapter("img_in", 0, 8, 4, 4, 2.0F, 3)};
  const std::vector<LoraAdapter> original = adapters;
  scale_adapters(adapters, -0.5);
  CHECK(adapters[0].alpha == 2.0F);
  CHECK(adapters[0].up[5] == -0.5F * original[0].up[5]);
}

TEST_CASE("lora tools: random adapters") {
  LoraConfig config{.rank = 2, .alpha = 1.0, .preset = "all-linear"};
  const std::vector<LoraAdapter> fused = random_adapters(config, small(), 7);
  CHECK(fused.size() == 2 * 10 + 3);
  CHECK(random_adapters(config, small(), 7)[3].up == fused[3].up);
  CHECK(random_adapters(config, small(), 8)[3].up != fused[3].up);
  CHECK(fused[3].alpha == 1.0F);
  config.split_qkv = true;
  CHECK(random_adapters(config, small(), 7).size() == 2 * (4 * 3 + 2 * 1 + 0) + 6);
}

TEST_CASE("lora tools: metadata of a file made from others") {
  const std::vector<LoraAdapter> adapters{adapter("img_in", 0, 8, 4, 4, 2.0F, 3)};
  const LoraFile first{.path = "/x/one.safetensors",
                       .metadata = {{"ss_seed", "1"},
                                    {"ss_sd_model_name", "flux1-dev"},
                                    {"ss_network_dim", "99"},
                                    {"sshs_model_hash", "00"},
                                    {"lora_adapter_metadata", "{}"}}};
  LoraFile second = first;
  second.path = "/x/two.safetensors";
  second.metadata["ss_seed"] = "2";
  const auto one = derived_metadata({first}, adapters, small(), "/y/new.safetensors");
  CHECK(one.at("ss_seed") == "1");
  CHECK(one.at("ss_network_dim") == "4");
  CHECK(one.at("ss_network_alpha") == "2");
  CHECK(one.at("ss_output_name") == "new");
  CHECK(!one.contains("lora_adapter_metadata"));
  CHECK(!one.contains("sshs_model_hash"));
  CHECK(!one.contains("modelspec.merged_from"));
  const auto both = derived_metadata({first, second}, adapters, small(), "/y/new.safetensors");
  CHECK(!both.contains("ss_seed"));
  CHECK(both.at("ss_sd_model_name") == "flux1-dev");
  CHECK(both.at("modelspec.merged_from") == "one, two");
}

TEST_CASE("lora tools: which scales fold exactly") {
  CHECK(folds_exactly({adapter("img_in", 0, 8, 4, 4, 1.0F, 3), adapter("img_in", 0, 8, 4, 4, 8.0F, 3)}));
  CHECK(!folds_exactly({adapter("img_in", 0, 8, 4, 4, 3.0F, 3)}));
}

TEST_CASE("lora tools: a file and its strength") {
  CHECK(parse_lora_entry("a.safetensors").strength == 1.0);
  CHECK(parse_lora_entry("a.safetensors:-0.5").path == "a.safetensors");
  CHECK(parse_lora_entry("a.safetensors:-0.5").strength == -0.5);
  CHECK(contains(test::message_of<ConfigError>([] { parse_lora_entry("a:b"); }), "strength 'b'"));
  CHECK_THROWS_AS(parse_lora_entry("a:nan"), ConfigError);
}
