#include "io/lora_file.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "io/checkpoint.h"
#include "io/file.h"
#include "io/lora_layout.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/io/lora_adapters.h"
#include "tests/io/tensor_files.h"

using namespace squareq;
using test::adapter;
using test::check_same_deltas;
using test::contains;
using test::numbers;
using test::save;
using test::small;
using test::TensorFile;

namespace {

// Message for a file with these tensors.
std::string problem(const TensorFile& file) {
  const test::TempDir dir;
  file.write(dir.file("l.safetensors"));
  return test::message_of<Error>([&] { read_lora(dir.file("l.safetensors"), small()); });
}

// One good pair on a projection.
TensorFile pair_on(const std::string& module, std::int64_t out, std::int64_t in, const char* down = ".lora_down.weight",
                   const char* up = ".lora_up.weight") {
  TensorFile file;
  file.add(module + down, DType::F32, {2, in}, numbers(2 * in, 5));
  file.add(module + up, DType::F32, {out, 2}, numbers(2 * out, 6));
  return file;
}

LoraFile read(const TensorFile& file) {
  const test::TempDir dir;
  file.write(dir.file("l.safetensors"));
  return read_lora(dir.file("l.safetensors"), small());
}

}  // namespace

TEST_CASE("lora: written and read back") {
  const test::TempDir dir;
  const FluxShape shape = small();
  std::vector<LoraAdapter> adapters;
  std::uint32_t stream = 0;
  for (const LinearSize& linear : flux_linears(shape)) {
    adapters.push_back(adapter(linear.name, 0, linear.out, linear.in, 3, 1.5F, stream += 2));
  }
  const DType dtype = GENERATE(DType::F32, DType::F16, DType::BF16);
  const std::string path = dir.file("l.safetensors");
  save(path, adapters, shape, dtype, lora_metadata({.rank = 3, .alpha = 1.5, .output_name = "mine"}));
  const LoraFile file = read_lora(path, shape);
  CHECK(file.adapters.size() == adapters.size());
  CHECK(file.unmapped.empty());
  check_same_deltas(file.adapters, adapters, shape, dtype == DType::F32 ? 0.0 : dtype == DType::F16 ? 1e-3 : 8e-3);

  const SafetensorsFile raw(path);
  CHECK(raw.tensors().size() == 3 * adapters.size());
  const TensorInfo& alpha = raw.get("lora_unet_double_blocks_1_img_attn_qkv.alpha");
  CHECK(alpha.dtype == DType::F32);
  CHECK(alpha.shape.empty());
  CHECK(raw.get("lora_unet_final_layer_adaLN_modulation_1.lora_up.weight").dtype == dtype);
  CHECK(raw.metadata().at("ss_network_dim") == "3");
  CHECK(raw.metadata().at("ss_network_alpha") == "1.5");
  CHECK(raw.metadata().at("ss_output_name") == "mine");
  CHECK(raw.metadata().at("modelspec.architecture") == "flux-1-dev/lora");
  CHECK(raw.metadata().at("sshs_model_hash").size() == 64);
  CHECK(raw.metadata().at("sshs_legacy_hash").size() == 8);
  // A file below 1 MiB has nothing in the window of the legacy hash: SHA-256 of no bytes.
  CHECK(raw.metadata().at("sshs_legacy_hash") == "e3b0c442");
}

TEST_CASE("lora: the model hash does not depend on the metadata") {
  const test::TempDir dir;
  const std::vector<LoraAdapter> adapters{adapter("img_in", 0, 8, 4, 2, 2, 1)};
  save(dir.file("a"), adapters, small(), DType::F32, lora_metadata({.rank = 2, .alpha = 2}));
  save(dir.file("b"), adapters, small(), DType::F32, {{"ss_training_comment", "other"}});
  const auto hash = [&](const char* name) { return SafetensorsFile(dir.file(name)).metadata().at("sshs_model_hash"); };
  CHECK(hash("a") == hash("b"));
  save(dir.file("c"), {adapter("img_in", 0, 8, 4, 2, 2, 9)}, small(), DType::F32);
  CHECK(hash("a") != hash("c"));
}

TEST_CASE("lora: metadata") {
  const auto entries = lora_metadata({.rank = 16,
                                      .alpha = 16.0,
                                      .guidance = false,
                                      .base_model = "flux1-schnell.safetensors",
                                      .width = 512,
                                      .height = 768,
                                      .finished_at = 1'700'000'000,
                                      .extra = {{"ss_seed", "42"}, {"modelspec.title", "A title"}}});
  CHECK(entries.at("ss_v2") == "False");
  CHECK(entries.at("ss_base_model_version") == "flux1");
  CHECK(entries.at("ss_network_module") == "networks.lora_flux");
  CHECK(entries.at("ss_network_alpha") == "16");
  CHECK(entries.at("ss_sd_model_name") == "flux1-schnell.safetensors");
  CHECK(entries.at("ss_seed") == "42");
  CHECK(entries.at("modelspec.architecture") == "flux-1-schnell/lora");
  CHECK(entries.at("modelspec.implementation") == "https://github.com/black-forest-labs/flux");
  CHECK(entries.at("modelspec.title") == "A title");
  CHECK(entries.at("modelspec.resolution") == "512x768");
  CHECK(entries.at("modelspec.date").size() == 19);
  CHECK(entries.at("ss_training_finished_at") == "1700000000");
  CHECK(!entries.contains("ss_output_name"));
}

TEST_CASE("lora: split adapters become one block-diagonal adapter") {
  const test::TempDir dir;
  const FluxShape shape = small();
  std::vector<LoraAdapter> adapters{adapter("single_blocks.0.linear1", 0, 8, 8, 2, 1.0F, 1),
                                    adapter("single_blocks.0.linear1", 16, 8, 8, 2, 1.0F, 3),
                                    adapter("single_blocks.0.linear1", 24, 24, 8, 2, 1.0F, 5)};
  const bool mixed = GENERATE(false, true);
  if (mixed) adapters[1] = adapter("single_blocks.0.linear1", 16, 8, 8, 3, 0.1F, 3);
  save(dir.file("l"), adapters, shape, DType::F32);
  const LoraFile file = read_lora(dir.file("l"), shape);
  REQUIRE(file.adapters.size() == 1);
  CHECK(file.adapters[0].rank == (mixed ? 7 : 6));
  CHECK(file.adapters[0].alpha == (mixed ? 7.0F : 3.0F));
  CHECK(file.adapters[0].rows == 48);
  check_same_deltas(file.adapters, adapters, shape, 1e-6);
}

TEST_CASE("lora: adapters that do nothing are left out, unless all do nothing") {
  const test::TempDir dir;
  std::vector<LoraAdapter> adapters{adapter("img_in", 0, 8, 4, 2, 2, 1), adapter("txt_in", 0, 8, 6, 2, 2, 3)};
  std::fill(adapters[0].up.begin(), adapters[0].up.end(), 0.0F);
  save(dir.file("l"), adapters, small(), DType::BF16);
  CHECK(read_lora(dir.file("l"), small()).adapters.size() == 1);
  std::fill(adapters[1].up.begin(), adapters[1].up.end(), 0.0F);
  save(dir.file("l"), adapters, small(), DType::BF16);
  CHECK(read_lora(dir.file("l"), small()).adapters.size() == 2);
}

TEST_CASE("lora: values that do not fit the type are refused and nothing is written") {
  const test::TempDir dir;
  std::vector<LoraAdapter> adapters{adapter("img_in", 0, 8, 4, 2, 2, 1)};
  adapters[0].up[3] = 70000.0F;
  CHECK(contains(test::message_of<NumericError>([&] { save(dir.file("l"), adapters, small(), DType::F16); }),
                 "lora_unet_img_in.lora_up.weight"));
  adapters[0].up[3] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(save(dir.file("l"), adapters, small(), DType::F32, {}), NumericError);
  CHECK(std::filesystem::is_empty(dir.path()));
  CHECK_THROWS_AS(save(dir.file("x/l"), {adapter("img_in", 0, 8, 4, 2, 2, 1)}, small(), DType::F32, {}), FileError);
}

TEST_CASE("lora: a file of diffusers") {
  FluxShape shape{.hidden = 192,
                  .heads = 3,
                  .head_dim = 64,
                  .axes = {8, 28, 28},
                  .double_blocks = 3,
                  .single_blocks = 6,
                  .mlp_hidden = 768,
                  .context_in = 128,
                  .vector_in = 64,
                  .in_channels = 64,
                  .out_channels = 64,
                  .guidance = true};
  const std::string path = TEST_DATA "/lora_reference.safetensors";
  const LoraFile file = read_lora(path, shape);
  CHECK(file.unmapped.empty());
  CHECK(2 * file.adapters.size() == SafetensorsFile(path).tensors().size());
  const auto k = std::find_if(file.adapters.begin(), file.adapters.end(), [](const LoraAdapter& a) {
    return a.linear == "single_blocks.0.linear1" && a.row_begin == 192;
  });
  REQUIRE(k != file.adapters.end());
  CHECK(k->rows == 192);
  CHECK(k->rank == 8);
  CHECK(k->alpha == 8.0F);
  CHECK(k->up == SafetensorsFile(path).read_f32("transformer.single_transformer_blocks.0.attn.to_k.lora_B.weight"));

  const test::TempDir dir;
  save(dir.file("l"), file.adapters, shape, DType::F32);
  check_same_deltas(read_lora(dir.file("l"), shape).adapters, file.adapters, shape, 0.0);

  shape.single_blocks = 2;
  CHECK(contains(test::message_of<FormatError>([&] { read_lora(path, shape); }), "another model"));
  shape.single_blocks = 6;
  shape.hidden = 128;
  CHECK(contains(test::message_of<FormatError>([&] { read_lora(path, shape); }), "does not fit"));
}

TEST_CASE("lora: every naming comes to the same rows") {
  const auto check = [](const TensorFile& file, const std::string& linear, std::int64_t row, std::int64_t rows) {
    const LoraFile lora = read(file);
    REQUIRE(lora.adapters.size() == 1);
    CHECK(lora.adapters[0].linear == linear);
    CHECK(lora.adapters[0].row_begin == row);
    CHECK(lora.adapters[0].rows == rows);
    CHECK(lora.adapters[0].rank == 2);
    CHECK(lora.adapters[0].alpha == 2.0F);
  };
  const char* a = ".lora_A.weight";
  const char* b = ".lora_B.weight";
  check(pair_on("lora_unet_double_blocks_1_txt_mlp_2", 8, 24), "double_blocks.1.txt_mlp.2", 0, 8);
  check(pair_on("lora_unet_double_blocks_1_txt_mlp_2", 8, 24, a, b), "double_blocks.1.txt_mlp.2", 0, 8);
  check(pair_on("transformer.transformer_blocks.1.attn.add_v_proj", 8, 8, a, b), "double_blocks.1.txt_attn.qkv", 16, 8);
  check(pair_on("transformer.transformer_blocks.1.attn.to_out.0", 8, 8, ".lora_A.default.weight",
                ".lora_B.default.weight"),
        "double_blocks.1.img_attn.proj", 0, 8);
  check(pair_on("transformer.single_transformer_blocks.0.proj_mlp", 24, 8, a, b), "single_blocks.0.linear1", 24, 24);
  check(pair_on("transformer.proj_out", 4, 8, a, b), "final_layer.linear", 0, 4);
  check(pair_on("diffusion_model.single_blocks.0.linear2", 8, 32), "single_blocks.0.linear2", 0, 8);
  check(pair_on("base_model.model.double_blocks.0.img_mod.lin", 48, 8, a, b), "double_blocks.0.img_mod.lin", 0, 48);
  check(pair_on("lora_transformer_transformer_blocks_0_attn_to_k", 8, 8), "double_blocks.0.img_attn.qkv", 8, 8);
}

TEST_CASE("lora: the final modulation of diffusers has its halves swapped") {
  TensorFile file;
  file.add("transformer.norm_out.linear.lora_A.weight", DType::F32, {1, 8}, numbers(8, 1));
  std::vector<float> up(16);
  for (std::size_t i = 0; i < 16; ++i) up[i] = static_cast<float>(i);
  file.add("transformer.norm_out.linear.lora_B.weight", DType::F32, {16, 1}, up);
  const LoraFile lora = read(file);
  CHECK(lora.adapters.at(0).linear == "final_layer.adaLN_modulation.1");
  CHECK(lora.adapters[0].up[0] == 8.0F);
  CHECK(lora.adapters[0].up[8] == 0.0F);
}

TEST_CASE("lora: alpha from tensors and from PEFT's metadata") {
  const std::string module = "transformer.transformer_blocks.0.attn.to_q";
  TensorFile file = pair_on(module, 8, 8, ".lora_A.weight", ".lora_B.weight");
  file.add(module + ".alpha", DType::BF16, {}, {6.0F});
  CHECK(read(file).adapters[0].alpha == 6.0F);
  nlohmann::json peft{{"transformer.r", 2}, {"transformer.lora_alpha", 4}};
  const auto set = [&] { file.metadata()["lora_adapter_metadata"] = peft.dump(); };
  set();
  CHECK(contains(problem(file), "also in metadata"));
  file.erase(module + ".alpha");
  CHECK(read(file).adapters[0].alpha == 4.0F);
  peft["transformer.alpha_pattern"] = {{"transformer_blocks.0.attn.to_q", 10}};
  set();
  CHECK(read(file).adapters[0].alpha == 10.0F);
  peft["transformer.use_rslora"] = true;
  set();
  CHECK(std::fabs(read(file).adapters[0].scale() - 10.0F / std::sqrt(2.0F)) < 1e-6F);
  peft["transformer.use_dora"] = true;
  set();
  CHECK(contains(problem(file), "DoRA"));
  file.metadata()["lora_adapter_metadata"] = "{";
  CHECK(contains(problem(file), "lora_adapter_metadata"));
}

TEST_CASE("lora: keys that belong to nothing are reported") {
  TensorFile file = pair_on("lora_unet_double_blocks_0_img_attn_proj", 8, 8);
  file.add("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", DType::F32, {1, 4}, numbers(4, 1));
  file.add("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", DType::F32, {}, {1});
  file.add("note", DType::F32, {}, {1});
  const LoraFile lora = read(file);
  CHECK(lora.adapters.size() == 1);
  CHECK(lora.unmapped == std::vector<std::string>{"lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
                                                  "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
                                                  "note"});
}

TEST_CASE("lora: wrong files are refused") {
  const std::string module = "lora_unet_double_blocks_0_img_attn_proj";
  TensorFile file = pair_on(module, 8, 8);
  SECTION("other kinds") {
    for (const char* suffix : {".dora_scale", ".lora_mid.weight", ".hada_w1_a", ".lokr_w1", ".diff", ".diff_b"}) {
      file.add(module + suffix, DType::F32, {1}, {1});
      CHECK(contains(problem(file), module + suffix));
      file.erase(module + suffix);
    }
  }
  SECTION("half a pair") {
    file.erase(module + ".lora_up.weight");
    CHECK(contains(problem(file), "no up matrix"));
  }
  SECTION("no LoRA at all") {
    TensorFile other;
    other.add("weight", DType::F32, {1}, {1});
    CHECK(contains(problem(other), "no LoRA matrices"));
  }
  SECTION("shapes that do not fit") {
    CHECK(contains(problem(pair_on(module, 8, 9)), "[2, 9]"));
    CHECK(contains(problem(pair_on(module, 9, 8)), "[9, 2]"));
    file.add(module + ".lora_up.weight", DType::F32, {8, 3}, numbers(24, 1));
    CHECK(contains(problem(file), "[8, 2]"));
    file.add(module + ".lora_up.weight", DType::F32, {16}, numbers(16, 1));
    CHECK(contains(problem(file), "a matrix"));
  }
  SECTION("blocks that the model has not got") {
    CHECK(contains(problem(pair_on("lora_unet_double_blocks_2_img_attn_proj", 8, 8)), "block 2"));
    CHECK(contains(problem(pair_on("transformer.single_transformer_blocks.1.proj_out", 8, 32)), "block 1"));
  }
  SECTION("NaN") {
    std::vector<float> values = numbers(16, 1);
    values[7] = std::numeric_limits<float>::quiet_NaN();
    file.add(module + ".lora_down.weight", DType::F32, {2, 8}, values);
    CHECK(contains(problem(file), "element 7"));
  }
  SECTION("alpha") {
    for (const float alpha : {0.0F, -1.0F, std::numeric_limits<float>::infinity()}) {
      file.add(module + ".alpha", DType::F32, {}, {alpha});
      CHECK(contains(problem(file), "a positive number"));
    }
    file.add(module + ".alpha", DType::F32, {2}, {1, 1});
    CHECK(contains(problem(file), "one number"));
  }
  SECTION("two namings") {
    file.add(module + ".lora_A.weight", DType::F32, {2, 8}, numbers(16, 1));
    CHECK(contains(problem(file), "two spellings"));
    file.erase(module + ".lora_A.weight");
    file.add("transformer.transformer_blocks.0.attn.to_out.0.lora_A.weight", DType::F32, {2, 8}, numbers(16, 1));
    file.add("transformer.transformer_blocks.0.attn.to_out.0.lora_B.weight", DType::F32, {8, 2}, numbers(16, 1));
    CHECK(contains(problem(file), "two adapters on the same rows"));
  }
}
