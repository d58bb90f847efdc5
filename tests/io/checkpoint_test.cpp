#include "io/checkpoint.h"

#include <cmath>
#include <filesystem>
#include <limits>

#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/io/tensor_files.h"

using namespace squareq;
using test::contains;
using test::TensorFile;
using Json = nlohmann::json;

namespace {

const std::string kFlux = TEST_DATA "/golden/flux_a.safetensors";
const std::string kT5 = TEST_DATA "/golden/t5_a.safetensors";
const std::string kClip = TEST_DATA "/golden/clip_a.safetensors";
const std::string kVae = TEST_DATA "/golden/ae_a.safetensors";

TensorFile copy_of(const std::string& path, const std::string& prefix = "") {
  return test::renamed(path, [&](const std::string& name) { return prefix + name; });
}

void check_same_weights(const Checkpoint& a, const Checkpoint& b, const std::vector<NamedShape>& tensors) {
  for (const NamedShape& tensor : tensors) {
    INFO(tensor.name);
    CHECK(a.shape(tensor.name) == tensor.shape);
    CHECK(b.shape(tensor.name) == tensor.shape);
    CHECK(a.read_f32(tensor.name) == b.read_f32(tensor.name));
  }
}

// Message of the error on opening a changed transformer and taking its shape.
std::string flux_problem(const TensorFile& file) {
  const test::TempDir dir;
  file.write(dir.file("m.safetensors"));
  return test::message_of<Error>([&] { flux_shape(Checkpoint::open(dir.file("m.safetensors"), Model::kTransformer)); });
}

}  // namespace

TEST_CASE("checkpoint: shapes of the golden models") {
  const FluxShape flux = flux_shape(Checkpoint::open(kFlux, Model::kTransformer));
  CHECK(flux.hidden == 64);
  CHECK(flux.heads == 2);
  CHECK(flux.head_dim == 32);
  CHECK(flux.axes == std::array<std::int64_t, 3>{8, 12, 12});
  CHECK(flux.double_blocks == 2);
  CHECK(flux.single_blocks == 3);
  CHECK(flux.mlp_hidden == 256);
  CHECK(flux.context_in == 48);
  CHECK(flux.vector_in == 32);
  CHECK(flux.in_channels == 64);
  CHECK(flux.out_channels == 64);
  CHECK(flux.guidance);

  const T5Shape t5 = t5_shape(Checkpoint::open(kT5, Model::kT5));
  CHECK(t5.width == 48);
  CHECK(t5.heads == 4);
  CHECK(t5.head_dim == 16);
  CHECK(t5.mlp_hidden == 80);
  CHECK(t5.buckets == 32);
  CHECK(t5.max_distance == 128);

  const ClipShape clip = clip_shape(Checkpoint::open(kClip, Model::kClip));
  CHECK(clip.width == 48);
  CHECK(clip.positions == 77);
  CHECK(clip.width % clip.heads == 0);

  const VaeShape vae = vae_shape(Checkpoint::open(kVae, Model::kVae));
  CHECK(vae.width == 32);
  CHECK(vae.multipliers == std::vector<std::int64_t>{1, 1, 2, 2});
  CHECK(vae.resnets == 1);
  CHECK(vae.latent_channels == 16);
  CHECK(vae.scale == 0.3611);
  CHECK(vae.shift == 0.1159);
}

TEST_CASE("checkpoint: the lists hold all tensors of a file and no other") {
  const auto check = [](const std::string& path, std::vector<NamedShape> expected) {
    const SafetensorsFile file(path);
    CHECK(file.tensors().size() == expected.size());
    for (const NamedShape& tensor : expected) CHECK(file.get(tensor.name).shape == tensor.shape);
  };
  check(kFlux, flux_tensors(flux_shape(Checkpoint::open(kFlux, Model::kTransformer))));
  check(kT5, t5_tensors(t5_shape(Checkpoint::open(kT5, Model::kT5))));
  check(kClip, clip_tensors(clip_shape(Checkpoint::open(kClip, Model::kClip))));
  check(kVae, vae_tensors(vae_shape(Checkpoint::open(kVae, Model::kVae))));
}

TEST_CASE("checkpoint: full-size lists have the published sizes") {
  FluxShape dev{.hidden = 3072,
                .heads = 24,
                .head_dim = 128,
                .axes = {16, 56, 56},
                .double_blocks = 19,
                .single_blocks = 38,
                .mlp_hidden = 12288,
                .context_in = 4096,
                .vector_in = 768,
                .in_channels = 64,
                .out_channels = 64,
                .guidance = true};
  const auto count = [&](const FluxShape& shape) {
    std::int64_t parameters = 0;
    std::size_t diffusers = 0;
    for (const NamedShape& tensor : flux_tensors(shape)) {
      std::int64_t elements = 1;
      for (const std::int64_t side : tensor.shape) elements *= side;
      parameters += elements;
      diffusers += names_in_diffusers(tensor, shape).size();
    }
    return std::tuple(flux_tensors(shape).size(), diffusers, parameters);
  };
  CHECK(count(dev) == std::tuple(std::size_t{780}, std::size_t{1160}, std::int64_t{11'901'408'320}));
  CHECK(flux_linears(dev).size() == 314);
  dev.guidance = false;
  CHECK(count(dev) == std::tuple(std::size_t{776}, std::size_t{1156}, std::int64_t{11'891'178'560}));

  CHECK(clip_tensors({.vocab = 49408, .width = 768, .layers = 12, .heads = 12, .mlp_hidden = 3072}).size() == 196);
  CHECK(t5_tensors({.vocab = 32128, .width = 4096, .layers = 24, .heads = 64, .head_dim = 64, .mlp_hidden = 10240})
            .size() == 219);
  const std::vector<NamedShape> vae = vae_tensors({.width = 128, .multipliers = {1, 2, 4, 4}, .resnets = 2});
  CHECK(vae.size() == 244);
  const auto shortcuts = [&](const char* part) {
    return std::count_if(vae.begin(), vae.end(), [&](const NamedShape& t) {
      return t.name.starts_with(part) && t.name.ends_with("nin_shortcut.weight");
    });
  };
  CHECK(shortcuts("encoder.") == 2);
  CHECK(shortcuts("decoder.") == 2);
}

TEST_CASE("checkpoint: names in diffusers files") {
  CHECK(diffusers_modules("double_blocks.3.txt_attn.qkv") ==
        std::vector<std::string>{"transformer_blocks.3.attn.add_q_proj", "transformer_blocks.3.attn.add_k_proj",
                                 "transformer_blocks.3.attn.add_v_proj"});
  CHECK(diffusers_tensors("single_blocks.12.linear2.bias") ==
        std::vector<std::string>{"single_transformer_blocks.12.proj_out.bias"});
  CHECK(diffusers_tensors("double_blocks.0.img_attn.norm.query_norm.scale") ==
        std::vector<std::string>{"transformer_blocks.0.attn.norm_q.weight"});
  CHECK(diffusers_modules("double_blocks.x.img_attn.qkv").empty());
  CHECK(diffusers_modules("something").empty());
  CHECK(diffusers_vae_tensor("decoder.up.3.block.0.conv1.weight", 4) == "decoder.up_blocks.0.resnets.0.conv1.weight");
  CHECK(diffusers_vae_tensor("decoder.up.1.upsample.conv.bias", 4) == "decoder.up_blocks.2.upsamplers.0.conv.bias");
  CHECK(diffusers_vae_tensor("encoder.down.1.block.0.nin_shortcut.weight", 4) ==
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight");
  CHECK(diffusers_vae_tensor("decoder.mid.attn_1.proj_out.weight", 4) ==
        "decoder.mid_block.attentions.0.to_out.0.weight");
  CHECK(diffusers_vae_tensor("encoder.norm_out.bias", 4) == "encoder.conv_norm_out.bias");
}

TEST_CASE("checkpoint: a transformer in diffusers naming, in one file and in shards") {
  const test::TempDir dir;
  const Checkpoint original = Checkpoint::open(kFlux, Model::kTransformer);
  const FluxShape shape = flux_shape(original);
  const std::filesystem::path folder = dir.path() / "model" / "transformer";
  std::filesystem::create_directories(folder);
  TensorFile file = test::in_diffusers_naming(kFlux);
  file.metadata().clear();
  file.write((folder / "diffusion_pytorch_model.safetensors").string());
  const Json config{
      {"axes_dims_rope", {8, 12, 12}}, {"num_layers", 2}, {"guidance_embeds", true}, {"out_channels", nullptr}};
  test::write_file((folder / "config.json").string(), config.dump());
  const std::string places[] = {(dir.path() / "model").string(), folder.string(),
                                (folder / "diffusion_pytorch_model.safetensors").string()};
  for (const std::string& place : places) {
    const Checkpoint read = Checkpoint::open(place, Model::kTransformer);
    CHECK(flux_shape(read).axes == shape.axes);
    check_same_weights(original, read, flux_tensors(shape));
  }
  const Checkpoint read = Checkpoint::open(folder.string(), Model::kTransformer);
  CHECK(read.has("double_blocks.1.img_attn.qkv.weight"));
  CHECK(!read.has("double_blocks.2.img_attn.qkv.weight"));

  SECTION("rows across parts") {
    for (const char* name : {"single_blocks.1.linear1.weight", "final_layer.adaLN_modulation.1.weight"}) {
      const std::vector<float> all = original.read_f32(name);
      const std::int64_t rows = original.shape(name)[0];
      std::vector<float> some(static_cast<std::size_t>(64 * (rows - 20)));
      read.read_f32(name, 13, rows - 20, some.data());
      CHECK(some == test::rows_of(all, rows, {{13, rows - 20}}));
    }
  }
  SECTION("shards") {
    const SafetensorsFile whole((folder / "diffusion_pytorch_model.safetensors").string());
    TensorFile shards[2];
    Json map;
    for (std::size_t i = 0; i < whole.tensors().size(); ++i) {
      const TensorInfo& t = whole.tensors()[i];
      shards[i % 2].add(t.name, DType::F32, t.shape, whole.read_f32(t.name));
      map[t.name] = i % 2 == 0 ? "part-1.safetensors" : "part-2.safetensors";
    }
    std::filesystem::remove(folder / "diffusion_pytorch_model.safetensors");
    shards[0].write((folder / "part-1.safetensors").string());
    shards[1].write((folder / "part-2.safetensors").string());
    const std::string index = (folder / "diffusion_pytorch_model.safetensors.index.json").string();
    const auto write_index = [&](const Json& json) { test::write_file(index, json.dump()); };
    write_index({{"metadata", {{"total_size", 1}}}, {"weight_map", map}});
    const Checkpoint sharded = Checkpoint::open(dir.file("model"), Model::kTransformer);
    CHECK(sharded.files().size() == 2);
    flux_shape(sharded);
    check_same_weights(original, sharded, flux_tensors(shape));

    const auto problem = [&] { return test::message_of<Error>([&] { Checkpoint::open(index, Model::kTransformer); }); };
    map["x_embedder.bias"] = "part-3.safetensors";
    write_index({{"weight_map", map}});
    CHECK(contains(problem(), "part-3.safetensors"));
    map["x_embedder.bias"] = "../part-1.safetensors";
    write_index({{"weight_map", map}});
    CHECK(contains(problem(), "../part-1.safetensors"));
    map["x_embedder.bias"] = 7;
    write_index({{"weight_map", map}});
    CHECK(contains(problem(), "x_embedder.bias"));
    map.erase("x_embedder.bias");
    map["other"] = "part-1.safetensors";
    write_index({{"weight_map", map}});
    CHECK(contains(problem(), "'other'"));
    write_index({{"weights", map}});
    CHECK(contains(problem(), "weight_map"));
    test::write_file(index, "{");
    CHECK(contains(problem(), "JSON"));
  }
}

TEST_CASE("checkpoint: prefixes and all-in-one files") {
  const test::TempDir dir;
  const std::string path = dir.file("all.safetensors");
  TensorFile all = copy_of(kFlux, "model.diffusion_model.");
  const auto add = [&](const std::string& from, const std::string& prefix) {
    const SafetensorsFile file(from);
    for (const TensorInfo& t : file.tensors()) all.add(prefix + t.name, DType::F32, t.shape, file.read_f32(t.name));
  };
  add(kVae, "vae.");
  add(kT5, "text_encoders.t5xxl.transformer.");
  add(kClip, "text_encoders.clip_l.transformer.");
  all.add("text_encoders.clip_l.logit_scale", DType::F32, {}, {1.0F});
  all.write(path);
  CHECK(flux_shape(Checkpoint::open(path, Model::kTransformer)).hidden == 64);
  CHECK(vae_shape(Checkpoint::open(path, Model::kVae)).width == 32);
  CHECK(t5_shape(Checkpoint::open(path, Model::kT5)).width == 48);
  check_same_weights(Checkpoint::open(path, Model::kT5), Checkpoint::open(kT5, Model::kT5),
                     {{"shared.weight", Checkpoint::open(kT5, Model::kT5).shape("shared.weight")}});
  CHECK(Checkpoint::open(path, Model::kClip).has("text_model.final_layer_norm.bias"));
  CHECK(!Checkpoint::holds(kFlux, Model::kVae));
  CHECK(Checkpoint::holds(kFlux, Model::kTransformer));
  CHECK(!Checkpoint::holds(kVae, Model::kClip));
  CHECK(contains(test::message_of<FormatError>([] { Checkpoint::open(kFlux, Model::kClip); }), "no CLIP"));
}

TEST_CASE("checkpoint: other spellings") {
  const test::TempDir dir;
  const auto rename = [](std::string name, const std::string& from, const std::string& to) {
    const std::size_t at = name.find(from);
    return at == std::string::npos ? name : name.replace(at, from.size(), to);
  };
  SECTION("norms named weight") {
    test::renamed(kFlux, [&](const std::string& n) {
      return rename(n, "_norm.scale", "_norm.weight");
    }).write(dir.file("m"));
    const FluxShape shape = flux_shape(Checkpoint::open(dir.file("m"), Model::kTransformer));
    CHECK(shape.head_dim == 32);
  }
  SECTION("T5 embedding") {
    test::renamed(kT5, [&](const std::string& n) {
      return rename(n, "shared.", "encoder.embed_tokens.");
    }).write(dir.file("m"));
    CHECK(t5_shape(Checkpoint::open(dir.file("m"), Model::kT5)).width == 48);
  }
  SECTION("CLIP without prefix") {
    test::renamed(kClip, [&](const std::string& n) { return rename(n, "text_model.", ""); }).write(dir.file("m"));
    const Checkpoint flat = Checkpoint::open(dir.file("m"), Model::kClip);
    const ClipShape shape = clip_shape(flat);
    check_same_weights(flat, Checkpoint::open(kClip, Model::kClip), clip_tensors(shape));
  }
}

TEST_CASE("checkpoint: an autoencoder in diffusers naming, new and old") {
  const test::TempDir dir;
  const Checkpoint original = Checkpoint::open(kVae, Model::kVae);
  const VaeShape shape = vae_shape(original);
  const bool old = GENERATE(false, true);
  TensorFile file;
  for (const NamedShape& tensor : vae_tensors(shape)) {
    std::string name = diffusers_vae_tensor(tensor.name, 4);
    REQUIRE(!name.empty());
    std::vector<std::int64_t> sides = tensor.shape;
    if (name.find("attentions.0.to_") != std::string::npos && sides.size() == 4) {
      sides.resize(2);
      if (old) name = spellings(name).at(1);
    }
    file.add(name, DType::F32, sides, original.read_f32(tensor.name));
  }
  file.write(dir.file("diffusion_pytorch_model.safetensors"));
  test::write_file(dir.file("config.json"),
                   R"({"scaling_factor":0.5,"shift_factor":-0.25,"block_out_channels":[32,32,64,64],)"
                   R"("layers_per_block":1,"latent_channels":16,"norm_num_groups":32})");
  const Checkpoint read = Checkpoint::open(dir.path().string(), Model::kVae);
  const VaeShape again = vae_shape(read);
  CHECK(again.multipliers == shape.multipliers);
  CHECK(again.scale == 0.5);
  CHECK(again.shift == -0.25);
  check_same_weights(original, read, vae_tensors(shape));

  test::write_file(dir.file("config.json"), R"({"block_out_channels":[32,64,64,64]})");
  CHECK(contains(test::message_of<ConfigError>([&] { vae_shape(Checkpoint::open(dir.path().string(), Model::kVae)); }),
                 "block_out_channels"));
  file.add("quant_conv.weight", DType::F32, {1}, {0});
  file.write(dir.file("diffusion_pytorch_model.safetensors"));
  CHECK(contains(test::message_of<FormatError>([&] { Checkpoint::open(dir.path().string(), Model::kVae); }),
                 "Stable Diffusion"));
}

TEST_CASE("checkpoint: scaled FP8") {
  const test::TempDir dir;
  const std::string name = "double_blocks.0.img_attn.qkv";
  const Checkpoint original = Checkpoint::open(kFlux, Model::kTransformer);
  const std::vector<float> weight = original.read_f32(name + ".weight");
  TensorFile file = copy_of(kFlux);
  std::vector<float> scaled(weight.size());
  std::vector<float> scales(192);
  for (std::size_t r = 0; r < 192; ++r) {
    scales[r] = 0.001F * static_cast<float>(r + 1);
    for (std::size_t c = 0; c < 64; ++c) scaled[r * 64 + c] = weight[r * 64 + c] / scales[r];
  }
  const auto read = [&] {
    file.write(dir.file("m"));
    const Checkpoint checkpoint = Checkpoint::open(dir.file("m"), Model::kTransformer);
    flux_shape(checkpoint);
    return checkpoint.read_f32(name + ".weight");
  };
  SECTION("one scale") {
    for (std::size_t i = 0; i < weight.size(); ++i) scaled[i] = weight[i] / 0.002F;
    file.add("scaled_fp8", DType::F8_E4M3, {2}, {0, 0});
    file.add(name + ".weight", DType::F8_E4M3, {192, 64}, scaled);
    file.add(name + ".scale_weight", DType::F32, {}, {0.002F});
    file.add(name + ".scale_input", DType::F32, {}, {1.0F});
    CHECK(test::relative_l2(read(), weight) < 0.04);
  }
  SECTION("a scale a row") {
    file.add(name + ".weight", DType::F8_E4M3, {192, 64}, scaled);
    file.add(name + ".weight_scale", DType::F32,
             GENERATE(false, true) ? std::vector<std::int64_t>{192} : std::vector<std::int64_t>{192, 1}, scales);
    CHECK(test::relative_l2(read(), weight) < 0.04);
  }
  SECTION("in a U8 container, marked by a tensor or in the header") {
    std::string bytes;
    for (const float value : scaled) bytes.push_back(static_cast<char>(f32_to_e4m3(value)));
    file.add_bytes(name + ".weight", DType::U8, {192, 64}, bytes);
    file.add(name + ".weight_scale", DType::F32, {192}, scales);
    CHECK(contains(test::message_of<FormatError>([&] { read(); }), "dtype U8"));
    if (GENERATE(false, true)) {
      const std::string mark = R"({"format":"float8_e4m3fn","full_precision_matrix_mult":true})";
      file.add_bytes(name + ".comfy_quant", DType::U8, {static_cast<std::int64_t>(mark.size())}, mark);
    } else {
      file.metadata()["_quantization_metadata"] = Json{{"layers", {{name, {{"format", "float8_e4m3fn"}}}}}}.dump();
    }
    CHECK(test::relative_l2(read(), weight) < 0.04);
  }
  SECTION("split parts keep their own scales") {
    TensorFile split = test::in_diffusers_naming(kFlux);
    const float part_scales[] = {0.001F, 0.01F, 0.1F};
    const char* parts[] = {"to_q", "to_k", "to_v"};
    for (std::size_t p = 0; p < 3; ++p) {
      const std::string layer = std::string("transformer_blocks.0.attn.") + parts[p];
      std::vector<float> rows = test::rows_of(weight, 192, {{static_cast<std::int64_t>(64 * p), 64}});
      for (float& value : rows) value /= part_scales[p];
      split.add(layer + ".weight", DType::F8_E4M3, {64, 64}, rows);
      split.add(layer + ".weight_scale", DType::F32, {1}, {part_scales[p]});
    }
    file = std::move(split);
    CHECK(test::relative_l2(read(), weight) < 0.04);
  }
  SECTION("formats that are not supported are named") {
    const auto problem = [&] { return test::message_of<FormatError>([&] { read(); }); };
    file.metadata()["_quantization_metadata"] = Json{{"layers", {{name, {{"format", "nvfp4"}}}}}}.dump();
    CHECK(contains(problem(), "'nvfp4'"));
    file.metadata()["_quantization_metadata"] = "[";
    CHECK(contains(problem(), "_quantization_metadata"));
    file.metadata().erase("_quantization_metadata");
    const std::string mark = R"({"format":"int8_tensorwise"})";
    file.add_bytes(name + ".comfy_quant", DType::U8, {static_cast<std::int64_t>(mark.size())}, mark);
    CHECK(contains(problem(), "'int8_tensorwise'"));
    file.erase(name + ".comfy_quant");
    file.add(name + ".weight_scale", DType::F32, {192, 2}, std::vector<float>(384, 1.0F));
    CHECK(contains(problem(), "[192, 2]"));
    file.add(name + ".weight_scale", DType::F32, {}, {std::numeric_limits<float>::infinity()});
    CHECK(contains(problem(), "inf"));
    file.erase(name + ".weight_scale");
    for (const char* suffix : {".weight_scale_2", ".pre_quant_scale", ".weight.absmax", ".qweight"}) {
      file.add(name + suffix, DType::F32, {1}, {1.0F});
      CHECK(contains(problem(), name + suffix));
      file.erase(name + suffix);
    }
  }
}

TEST_CASE("checkpoint: where RoPE axes come from") {
  const test::TempDir dir;
  TensorFile file = copy_of(kFlux);
  file.metadata().clear();
  file.write(dir.file("m"));
  const Checkpoint bare = Checkpoint::open(dir.file("m"), Model::kTransformer);
  CHECK(contains(test::message_of<ConfigError>([&] { flux_shape(bare); }), "axes"));
  CHECK(flux_shape(bare, Json{{"axes", {4, 14, 14}}}).axes == std::array<std::int64_t, 3>{4, 14, 14});
  CHECK(flux_shape(bare, Json{{"axes_dims_rope", {0, 16, 16}}}).axes == std::array<std::int64_t, 3>{0, 16, 16});
  const Checkpoint golden = Checkpoint::open(kFlux, Model::kTransformer);
  CHECK(flux_shape(golden, Json{{"axes_dim", {4, 14, 14}}}).axes == std::array<std::int64_t, 3>{4, 14, 14});
  CHECK(flux_shape(golden, Json{{"heads", 2}, {"theta", 500}}).theta == 500.0);
  const Json wrong[] = {{{"axes", {8, 12, 14}}},    {{"axes", {9, 11, 12}}},      {{"axes", {8, 24}}},
                        {{"axes", "8,12,12"}},      {{"axes", {-8, 20, 20}}},     {{"hidden", 128}},
                        {{"depth", "2"}},           {{"guidance_embeds", false}}, {{"theta", -1}},
                        {{"axes", {8.5, 12, 11.5}}}};
  for (const Json& json : wrong) {
    INFO(json.dump());
    CHECK(contains(test::message_of<ConfigError>([&] { flux_shape(golden, json); }),
                   "given config: '" + json.begin().key()));
  }
}

TEST_CASE("checkpoint: settings of text encoders") {
  const test::TempDir dir;
  TensorFile clip = copy_of(kClip);
  Json config = Json::parse(clip.metadata().at("config"));
  const auto shape = [&] {
    clip.metadata()["config"] = config.dump();
    clip.write(dir.file("m"));
    return clip_shape(Checkpoint::open(dir.file("m"), Model::kClip));
  };
  config["eos_token_id"] = 2;
  CHECK(shape().eos == -1);
  config["eos_token_id"] = 40;
  CHECK(shape().eos == 40);
  config["hidden_act"] = "gelu";
  CHECK(contains(test::message_of<ConfigError>([&] { shape(); }), "hidden_act"));
  clip.metadata().clear();
  clip.write(dir.file("m"));
  CHECK(contains(test::message_of<ConfigError>([&] { clip_shape(Checkpoint::open(dir.file("m"), Model::kClip)); }),
                 "heads"));

  TensorFile t5 = copy_of(kT5);
  t5.metadata()["config"] = R"({"num_heads": 8})";
  t5.write(dir.file("t"));
  CHECK(contains(test::message_of<ConfigError>([&] { t5_shape(Checkpoint::open(dir.file("t"), Model::kT5)); }),
                 "num_heads"));
  t5.metadata()["config"] = "{";
  t5.write(dir.file("t"));
  CHECK(contains(test::message_of<FormatError>([&] { Checkpoint::open(dir.file("t"), Model::kT5); }), "config"));
  t5.metadata().clear();
  t5.add("encoder.block.0.layer.1.DenseReluDense.wi.weight", DType::F32, {1}, {0});
  t5.write(dir.file("t"));
  CHECK(contains(test::message_of<FormatError>([&] { Checkpoint::open(dir.file("t"), Model::kT5); }), "T5 v1.0"));
}

TEST_CASE("checkpoint: missing, misshapen and damaged tensors are named") {
  const std::string name = "double_blocks.1.txt_mlp.0.weight";
  TensorFile file = copy_of(kFlux);
  SECTION("missing") {
    file.erase(name);
    CHECK(contains(flux_problem(file), "'" + name + "'"));
    file = test::in_diffusers_naming(kFlux);
    file.erase("transformer_blocks.1.attn.to_v.bias");
    const std::string message = flux_problem(file);
    CHECK(contains(message, "double_blocks.1.img_attn.qkv.bias"));
    CHECK(contains(message, "transformer_blocks.1.attn.to_v.bias"));
  }
  SECTION("misshapen") {
    file.add(name, DType::F32, {64, 256}, std::vector<float>(64 * 256));
    const std::string message = flux_problem(file);
    CHECK(contains(message, name));
    CHECK(contains(message, "[64, 256]"));
    CHECK(contains(message, "[256, 64]"));
    file = test::in_diffusers_naming(kFlux);
    file.add("transformer_blocks.1.attn.to_k.weight", DType::F32, {65, 64}, std::vector<float>(65 * 64));
    CHECK(contains(flux_problem(file), "transformer_blocks.1.attn.to_k.weight"));
  }
  SECTION("integers") {
    file.add_bytes(name, DType::I8, {256, 64}, std::string(256 * 64, 'x'));
    CHECK(contains(flux_problem(file), "dtype I8"));
  }
  SECTION("a block index out of all proportion") {
    file.add("double_blocks.123456789012.img_mod.lin.bias", DType::F32, {1}, {0});
    CHECK(contains(flux_problem(file), "index 123456789012"));
  }
  SECTION("other families") {
    file.add("distilled_guidance_layer.in_proj.weight", DType::F32, {1}, {0});
    CHECK(contains(flux_problem(file), "Chroma"));
    file.erase("distilled_guidance_layer.in_proj.weight");
    file.add("single_stream_modulation.lin.weight", DType::F32, {1}, {0});
    CHECK(contains(flux_problem(file), "FLUX.2"));
  }
  SECTION("NaN and infinity") {
    const float bad = GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity());
    const test::TempDir dir;
    std::vector<float> values(256 * 64);
    values[70] = bad;
    file.add(name, DType::BF16, {256, 64}, values);
    file.write(dir.file("m"));
    const Checkpoint checkpoint = Checkpoint::open(dir.file("m"), Model::kTransformer);
    const std::string message = test::message_of<FormatError>([&] { checkpoint.read_f32(name); });
    CHECK(contains(message, name));
    CHECK(contains(message, "row 1"));
    CHECK(contains(message, "element 6"));
    std::vector<float> first(64);
    checkpoint.read_f32(name, 0, 1, first.data());
    CHECK(first == std::vector<float>(64));
  }
}

TEST_CASE("checkpoint: files that are none") {
  const test::TempDir dir;
  const auto problem = [&](const std::string& path) {
    return test::message_of<Error>([&] { Checkpoint::open(path, Model::kTransformer); });
  };
  CHECK(contains(problem(dir.file("none")), "none"));
  CHECK(contains(problem(dir.path().string()), "no transformer"));
  test::write_file(dir.file("m.gguf"), "GGUF and more");
  CHECK(contains(problem(dir.file("m.gguf")), "GGUF"));
  test::write_file(dir.file("m.safetensors"), "PK\x03\x04 and more");
  CHECK(contains(problem(dir.file("m.safetensors")), "PyTorch"));
  test::write_file(dir.file("m.safetensors"), "garbage, not a header");
  CHECK(contains(problem(dir.path().string()), "header length"));
  test::write_file(dir.file("n.safetensors"), "");
  CHECK(contains(problem(dir.path().string()), "several files"));
}
