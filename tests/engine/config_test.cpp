#include "engine/config.h"

#include <filesystem>

#include "engine/config_table.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using squareq::test::contains;

namespace {

constexpr const char* kRequired = R"("model": "m", "data": {"folder": "d", "resolution": 512})";

// A valid configuration with more settings before it.
std::string with(const std::string& more) { return "{" + more + (more.empty() ? "" : ", ") + kRequired + "}"; }

TrainConfig parse(const std::string& text) { return parse_train_config(text, "/runs/run.json"); }

std::string refusal(const std::string& text) {
  return test::message_of<ConfigError>([&] { parse(text); });
}

bool refuses(const std::string& text, const std::string& field, const std::string& found, const std::string& expected) {
  const std::string message = refusal(text);
  INFO(message);
  CHECK(contains(message, "/runs/run.json: field '" + field + "'"));
  CHECK(contains(message, found));
  CHECK(contains(message, expected));
  return !message.empty();
}

}  // namespace

TEST_CASE("config: defaults are the recommended ones") {
  const TrainConfig c = parse(with(""));
  CHECK(c.model == "/runs/m");
  CHECK(c.data.folder == "/runs/d");
  CHECK(c.output_dir == "/runs/output");
  CHECK(c.cache_dir == "/runs/cache");
  CHECK(c.slab.empty());
  CHECK(c.data.resolution == std::vector<std::int64_t>{512});
  CHECK(c.data.fixed_size[0] == 0);
  REQUIRE(c.data.folders.size() == 1);
  CHECK(c.data.folders[0].folder == "/runs/d");
  CHECK(c.data.folders[0].repeats == 1);
  CHECK_FALSE(c.data.upscale);
  CHECK(c.lora.rank == 16);
  CHECK(c.lora.alpha == 16.0);
  CHECK(c.lora.preset == "attention+mlp");
  CHECK(c.training.learning_rate == 1e-4);
  CHECK(c.training.timestep_sampling == TimestepSampling::kFluxShift);
  CHECK(c.training.guidance == 1.0);
  CHECK(c.training.weight_decay == 0.01);
  CHECK(c.training.max_grad_norm == 1.0);
  CHECK(c.save_dtype == DType::BF16);
  CHECK(c.quantize == TrainConfig::Quantize::kInt8);
}

TEST_CASE("config: every field is read") {
  const TrainConfig c = parse(R"({
    // the settings of a reference run
    "transformer": "/models/flux.safetensors", "vae": "ae", "clip": "clip_l", "t5": "t5xxl", "tokenizers": "tok",
    "quantize": "none", "axes_dims_rope": [8, 28, 28], "output_dir": "../out", "name": "pixel", "cache_dir": "c",
    "save_every": 100, "keep_states": 3, "resume": "s.state", "timestamps": false, "save_dtype": "f32", "log_every": 10,
    "device": "cpu", "threads": 2, "attention": "portable", "deterministic": false, "precision": "w8a8",
    "data": {"folder": "d", "resolution": "128x256", "text_length": 32, "upscale": true,
      "bucket_step": 32, "prior_weight": 0.5, "repeats": 3, "weight": 0.25, "regularisation": true, "flip": true,
      "alpha_mask": true, "mask_folder": "masks", "mask_floor": 0.1, "default_caption": "a photo", "trigger": "sks",
      "prefix": "p ", "suffix": " s", "caption_dropout": 0.1, "tag_orders": 4, "keep_tags": 1, "latent": "mean"},
    "lora": {"rank": 8, "alpha": 4, "rank_dropout": 0.25, "overrides": [{"pattern": "single.*", "rank": 2},
      {"pattern": "double.*", "rank": 3, "alpha": 6}], "targets": "all-linear", "split_qkv": true, "init": "gaussian"},
    "training": {"steps": 500, "batch_size": 8, "accumulation": 2, "seed": 18446744073709551615, "learning_rate": 1e-3,
      "lr_schedule": "cosine", "warmup_steps": 5, "betas": [0.8, 0.99], "epsilon": 1e-7, "weight_decay": 0.1,
      "max_grad_norm": 0, "timestep_sampling": "sigmoid", "sigmoid_scale": 2, "logit_mean": -1, "logit_std": 0.5,
      "shift": 1.5, "guidance": 3.5, "activation_checkpointing": false, "lr_cycles": 3, "lr_power": 2, "lr_end": 0.1,
      "optimizer": "adamw8bit", "ema_decay": 0.99, "spike_factor": 5, "max_skips": 7, "loss": "huber", "huber_c": 0.2,
      "loss_weighting": "cosmap", "noise_offset": 0.05, "mode_scale": 0.5, "sigma_min": 0.1, "sigma_max": 0.9},
    "validation": {"folder": "v", "every": 50, "draws": 8},
    "preview": {"prompts": ["a", "b"], "every": 10, "size": [64, 32], "steps": 4, "guidance": 2, "seed": 7} /* end */
  })");
  CHECK(c.transformer == "/models/flux.safetensors");
  CHECK(c.vae == "/runs/ae");
  CHECK(c.output_dir == "/out");
  CHECK(c.quantize == TrainConfig::Quantize::kNone);
  CHECK(c.axes_dims_rope == std::array<std::int64_t, 3>{8, 28, 28});
  CHECK(c.name == "pixel");
  CHECK(c.save_every == 100);
  CHECK(c.save_dtype == DType::F32);
  CHECK(c.log_every == 10);
  CHECK(c.device == TrainConfig::Device::kCpu);
  CHECK(c.threads == 2);
  CHECK(c.compute.attention == DeviceOptions::Kernels::kPortable);
  CHECK_FALSE(c.compute.deterministic);
  CHECK(c.compute.precision == DeviceOptions::Precision::kW8A8);
  CHECK(c.data.fixed_size == std::array<std::int64_t, 2>{128, 256});
  CHECK(c.data.bucket_step == 32);
  CHECK(c.data.upscale);
  CHECK(c.data.prior_weight == 0.5);
  CHECK(c.data.folders.at(0).repeats == 3);
  CHECK(c.data.folders.at(0).weight == 0.25);
  CHECK(c.data.folders.at(0).regularisation);
  CHECK(c.data.folders.at(0).flip);
  CHECK(c.data.folders.at(0).alpha_mask);
  CHECK(c.data.folders.at(0).mask_folder == "/runs/masks");
  CHECK(c.data.folders.at(0).mask_floor == 0.1);
  CHECK(c.data.folders.at(0).default_caption == "a photo");
  CHECK(c.data.folders.at(0).trigger == "sks");
  CHECK(c.data.folders.at(0).prefix == "p ");
  CHECK(c.data.folders.at(0).suffix == " s");
  CHECK(c.data.folders.at(0).caption_dropout == 0.1);
  CHECK(c.data.folders.at(0).tag_orders == 4);
  CHECK(c.data.folders.at(0).keep_tags == 1);
  CHECK(c.data.text_length == 32);
  CHECK(c.data.latent == DataConfig::Latent::kMean);
  CHECK(c.lora.rank == 8);
  CHECK(c.lora.alpha == 4.0);
  CHECK(c.lora.preset == "all-linear");
  CHECK(c.lora.split_qkv);
  CHECK(c.lora.init == LoraConfig::Init::kGaussian);
  CHECK(c.training.steps == 500);
  CHECK(c.training.batch_size == 8);
  CHECK(c.training.accumulation == 2);
  CHECK(c.training.seed == UINT64_MAX);
  CHECK(c.training.learning_rate == 1e-3);
  CHECK(c.training.lr_schedule == TrainingConfig::Schedule::kCosine);
  CHECK(c.training.warmup_steps == 5);
  CHECK(c.training.betas == std::array<double, 2>{0.8, 0.99});
  CHECK(c.training.epsilon == 1e-7);
  CHECK(c.training.weight_decay == 0.1);
  CHECK(c.training.max_grad_norm == 0.0);
  CHECK(c.training.timestep_sampling == TimestepSampling::kSigmoid);
  CHECK(c.training.sigmoid_scale == 2.0);
  CHECK(c.training.logit_mean == -1.0);
  CHECK(c.training.logit_std == 0.5);
  CHECK(c.training.shift == 1.5);
  CHECK(c.training.guidance == 3.5);
  CHECK_FALSE(c.training.activation_checkpointing);
  CHECK(c.keep_states == 3);
  CHECK(c.resume == "/runs/s.state");
  CHECK_FALSE(c.timestamps);
  CHECK(c.lora.rank_dropout == 0.25);
  REQUIRE(c.lora.overrides.size() == 2);
  CHECK(c.lora.overrides[0].pattern == "single.*");
  CHECK(c.lora.overrides[0].rank == 2);
  CHECK(c.lora.overrides[1].alpha == 6.0);
  CHECK(c.training.lr_cycles == 3);
  CHECK(c.training.lr_power == 2.0);
  CHECK(c.training.lr_end == 0.1);
  CHECK(c.training.optimizer == TrainingConfig::Optimizer::kAdamW8Bit);
  CHECK(c.training.ema_decay == 0.99);
  CHECK(c.training.spike_factor == 5.0);
  CHECK(c.training.max_skips == 7);
  CHECK(c.training.loss == LossKind::kHuber);
  CHECK(c.training.huber_c == 0.2);
  CHECK(c.training.loss_weighting == LossWeighting::kCosmap);
  CHECK(c.training.noise_offset == 0.05);
  CHECK(c.training.mode_scale == 0.5);
  CHECK(c.training.sigma_min == 0.1);
  CHECK(c.training.sigma_max == 0.9);
  CHECK(c.validation.folder == "/runs/v");
  CHECK(c.validation.every == 50);
  CHECK(c.validation.draws == 8);
  CHECK(c.preview.prompts == std::vector<std::string>{"a", "b"});
  CHECK(c.preview.every == 10);
  CHECK(c.preview.size == std::array<std::int64_t, 2>{64, 32});
  CHECK(c.preview.steps == 4);
  CHECK(c.preview.guidance == 2.0);
  CHECK(c.preview.seed == 7);

  SECTION("and written out so that reading gives the same") {
    const std::string text = to_json(c);
    CHECK(to_json(parse_train_config(text, "elsewhere/other.json")) == text);
    for (const ConfigField& field : config_fields()) {
      INFO(field.path);
      CHECK((field.get(c).is_null() || contains(text, "\"" + field.leaf() + "\"")));
    }
  }
}

TEST_CASE("config: several folders, each with settings of its own") {
  const TrainConfig c = parse(R"({"$schema": "schema.json", "model": "m", "data": {
    "folders": [{"folder": "a", "repeats": 10, "trigger": "sks"}, {"folder": "/b", "regularisation": true}],
    "resolution": [768, 512], "repeats": 2, "suffix": "."}})");
  REQUIRE(c.data.folders.size() == 2);
  CHECK(c.data.folders[0].folder == "/runs/a");
  CHECK(c.data.folders[0].repeats == 10);
  CHECK(c.data.folders[0].trigger == "sks");
  CHECK(c.data.folders[0].suffix == ".");
  CHECK(c.data.folders[1].folder == "/b");
  CHECK(c.data.folders[1].repeats == 2);
  CHECK(c.data.folders[1].regularisation);
  CHECK(c.data.folders[1].trigger.empty());
  CHECK(c.data.resolution == std::vector<std::int64_t>{512, 768});
  const std::string text = to_json(c);
  CHECK(to_json(parse_train_config(text, "elsewhere/other.json")) == text);

  const auto data = [](const std::string& folders) {
    return R"({"model": "m", "data": {"resolution": 512, "folders": )" + folders + "}}";
  };
  CHECK(refuses(data("[]"), "data.folders", "[]", "a list of 1 to 256"));
  CHECK(refuses(data("{}"), "data.folders", "a section", "a list of 1 to 256"));
  CHECK(refuses(data("[3]"), "data.folders[0]", "3", "a section"));
  CHECK(refuses(data(R"([{"folder": "a"}, {"repeats": 2}])"), "data.folders[1].folder", "nothing", "a path"));
  CHECK(refuses(data(R"([{"folder": "a", "repeats": 0}])"), "data.folders[0].repeats", "0", "from 1 to 10000"));
  CHECK(refuses(data(R"([{"folder": "a", "repeat": 1}])"), "data.folders[0].repeat", "unknown", "'data.repeats'"));
  CHECK(refuses(data(R"([{"folder": "a", "upscale": true}])"), "data.folders[0].upscale", "an unknown name", ""));
  CHECK(refuses(data(R"([{"folder": "a"}], "folder": "b")"), "data.folders", "both", "one of them"));
}

TEST_CASE("config: unknown names suggest the nearest one") {
  CHECK(contains(refusal(with(R"("lora": {"rnak": 4})")), "field 'lora.rnak': found an unknown name"));
  CHECK(contains(refusal(with(R"("lora": {"rnak": 4})")), "did you mean 'lora.rank'?"));
  CHECK(contains(refusal(with(R"("training": {"learning_rat": 1})")), "did you mean 'training.learning_rate'?"));
  CHECK(contains(refusal(with(R"("trainig": {"steps": 1})")), "did you mean 'training'?"));
  CHECK(contains(refusal(with(R"("modle": "x")")), "did you mean 'model'?"));
  CHECK(contains(refusal(with(R"("batchsize": 2)")), "did you mean 'training.batch_size'?"));
  CHECK(contains(refusal(with(R"("learning_rate": 1e-4)")), "'learning_rate' belongs into the section 'training'"));
  CHECK(contains(refusal(with(R"("lora": {"save_every": 1})")), "'save_every' stands outside of all sections"));
  CHECK(contains(refusal(with("\"" + std::string(100000, 'x') + "\": 1")), "did you mean"));
}

TEST_CASE("config: names of other trainers are translated") {
  CHECK(contains(refusal(with(R"("network_dim": 16)")), "network_dim is called lora.rank here"));
  CHECK(contains(refusal(with(R"("lora": {"network_alpha": 16})")), "network_alpha is called lora.alpha here"));
  CHECK(contains(refusal(with(R"("max_train_steps": 16)")), "max_train_steps is called training.steps here"));
  CHECK(contains(refusal(with(R"("lr": 1e-4)")), "lr is called training.learning_rate here"));
  CHECK(contains(refusal(with(R"("LR": 1e-4)")), "lr is called training.learning_rate here"));
  CHECK(contains(refusal(with(R"("optimizer_type": "AdamW8bit")")), "called training.optimizer here"));
  CHECK(contains(refusal(with(R"("network": {"linear": 4})")), "section lora"));

  for (const ForeignName& foreign : foreign_names()) {
    INFO(foreign.name);
    CHECK(foreign.path.empty() != foreign.note.empty());
    const std::string message = refusal(with(std::string("\"").append(foreign.name).append("\": 1")));
    CHECK(contains(message, foreign.path.empty() ? foreign.note : foreign.path));
    bool known = foreign.path.empty();
    for (const ConfigField& field : config_fields()) {
      known = known || field.path == foreign.path;
      CHECK(field.leaf() != foreign.name);
    }
    CHECK(known);
  }
}

TEST_CASE("config: what differs between two") {
  const TrainConfig before = parse(with(""));
  CHECK(config_changes(before, before).empty());
  const TrainConfig after = parse(with(R"("threads": 2, "lora": {"rank": 8}, "training": {"seed": 1})"));
  const std::vector<ConfigChange> changes = config_changes(before, after);
  REQUIRE(changes.size() == 4);
  CHECK(changes[0].path == "threads");
  CHECK(changes[0].before == "0");
  CHECK(changes[0].after == "2");
  CHECK_FALSE(changes[0].kept);
  CHECK(changes[1].path == "lora.rank");
  CHECK(changes[1].kept);
  CHECK(changes[2].path == "lora.alpha");
  CHECK(changes[3].path == "training.seed");
  CHECK(changes[3].kept);
}

TEST_CASE("config: wrong types name field, found and expected") {
  CHECK(refuses(with(R"("lora": {"rank": "16"})"), "lora.rank", "the text \"16\"", "an integer from 1 to 4096"));
  CHECK(refuses(with(R"("lora": {"rank": 16.0})"), "lora.rank", "16.0", "an integer"));
  CHECK(refuses(with(R"("lora": {"rank": null})"), "lora.rank", "null", "an integer"));
  CHECK(refuses(with(R"("lora": {"split_qkv": 1})"), "lora.split_qkv", "found 1", "true or false"));
  CHECK(refuses(with(R"("lora": [1, 2])"), "lora", "[1,2]", "a section"));
  CHECK(refuses(with(R"("name": {})"), "name", "a section { }", "a file name"));
  CHECK(refuses(with(R"("training": {"betas": 0.9})"), "training.betas", "0.9", "two numbers"));
  CHECK(refuses(with(R"("training": {"steps": true})"), "training.steps", "true", "an integer"));
  CHECK(refuses(with(R"("slab": "")"), "slab", "the text \"\"", "a path"));
  CHECK(refuses(with(R"("slab": "a\u0000b")"), "slab", "a?b", "a path"));
  CHECK(contains(refusal("[1]"), "[1]"));
  CHECK(contains(refusal("3"), "an object"));
}

TEST_CASE("config: values out of range are refused") {
  CHECK(refuses(with(R"("lora": {"rank": 0})"), "lora.rank", "0", "from 1 to 4096"));
  CHECK(refuses(with(R"("lora": {"rank": 18446744073709551615})"), "lora.rank", "18446744073709551615", "from 1"));
  CHECK(refuses(with(R"("lora": {"alpha": -1})"), "lora.alpha", "-1", "above 0"));
  CHECK(refuses(with(R"("lora": {"alpha": 0})"), "lora.alpha", "0", "above 0"));
  CHECK(refuses(with(R"("lora": {"targets": "everything"})"), "lora.targets", "everything", "attention+mlp"));
  CHECK(refuses(with(R"("lora": {"targets": []})"), "lora.targets", "[]", "attention+mlp"));
  CHECK(refuses(with(R"("lora": {"targets": ["(" ]})"), "lora.targets", "a list of 1", "regular expressions"));
  CHECK(refuses(with(R"("training": {"learning_rate": 1e300})"), "training.learning_rate", "1e+300", "at most 1"));
  CHECK(refuses(with(R"("training": {"learning_rate": 0})"), "training.learning_rate", "0", "above 0"));
  CHECK(refuses(with(R"("training": {"betas": [0.9, 1.0]})"), "training.betas", "[0.9,1.0]", "below 1"));
  CHECK(refuses(with(R"("training": {"seed": -1})"), "training.seed", "-1", "an integer from 0"));
  CHECK(refuses(with(R"("training": {"lr_schedule": "cosin"})"), "training.lr_schedule", "cosin", "\"cosine\""));
  CHECK(refuses(with(R"("training": {"steps": 10, "warmup_steps": 11})"), "training.warmup_steps", "11", "steps = 10"));
  CHECK(refuses(with(R"("training": {"sigma_min": 0.5, "sigma_max": 0.4})"), "training.sigma_min", "0.5", "0.4"));
  CHECK(refuses(with(R"("lora": {"rank_dropout": 1})"), "lora.rank_dropout", "1", "below 1"));
  CHECK(refuses(with(R"("lora": {"overrides": [{"rank": 1}]})"), "lora.overrides", "a list of 1", "`pattern`"));
  CHECK(
      refuses(with(R"("lora": {"overrides": [{"pattern": "(", "rank": 1}]})"), "lora.overrides", "a list", "regular"));
  CHECK(refuses(with(R"("preview": {"size": [64, 60]})"), "preview.size", "[64,60]", "multiple of 16"));
  CHECK(refuses(with(R"("preview": {"prompts": [""]})"), "preview.prompts", "a list of 1", "texts"));
  CHECK(refuses(with(R"("axes_dims_rope": [8, 28, 27])"), "axes_dims_rope", "[8,28,27]", "three even"));
  CHECK(refuses(with(R"("name": "a/b")"), "name", "a/b", "without folder"));
  CHECK(refuses(with(R"("name": "..")"), "name", "..", "without folder"));
  for (const char* bad : {"100", "[512, 100]", "[]", "0", "-16", "\"512 x 512\"", "\"512x100\"", "\"512x-16\"",
                          "[512, 512, 512]", "[512, [768]]", "1e400", "48"}) {
    const std::string message =
        refusal(R"({"model": "m", "data": {"folder": "d", "resolution": )" + std::string(bad) + "}}");
    INFO(bad << ": " << message);
    CHECK(!message.empty());
  }
}

TEST_CASE("config: what is required") {
  CHECK(parse(R"({"model": "m", "data": {"folder": "d", "resolution": [768, 768]}})").data.fixed_size[1] == 768);
  CHECK(contains(refusal("{}"), "field 'data.folder': found nothing, expected a path"));
  CHECK(contains(refusal(R"({"model": "m", "data": {"folder": "d"}})"), "field 'data.resolution': found nothing"));
  const std::string data = R"("data": {"folder": "d", "resolution": 512})";
  CHECK(contains(refusal("{" + data + "}"), "field 'transformer': found nothing"));
  CHECK(contains(refusal(R"({"slab": "s", )" + data + "}"), "field 'vae': found nothing"));
  CHECK(contains(refusal(R"({"transformer": "s", "vae": "v", "clip": "c", "t5": "t", )" + data + "}"), "tokenizers"));
  CHECK(refusal(R"({"slab": "s", "vae": "v", "clip": "c", "t5": "t", "tokenizers": "k", )" + data + "}").empty());
}

TEST_CASE("config: text that is not JSON names line and column") {
  CHECK(contains(refusal("{\n  \"model\": \"m\"\n  \"name\": 1}"), "/runs/run.json: line 3, column"));
  CHECK(contains(refusal(""), "line 1"));
  CHECK(contains(refusal("{\"model\": "), "the end of the text"));
  CHECK(contains(refusal("{\"model\": NaN}"), "text that is not JSON"));
  CHECK(contains(refusal("{\"model\": \"\xFF\"}"), "text that is not JSON"));
  CHECK(contains(refusal("{\"lora\": {\"alpha\": 1e999}}"), "a number too large"));
  CHECK(contains(refusal(with(R"("name": "a", "name": "b")")), "a name used twice"));
  CHECK(!refusal(std::string(100000, '[')).empty());
  CHECK(!refusal(std::string(100000, '[') + std::string(100000, ']')).empty());
}

TEST_CASE("config: a file that is not there") {
  const test::TempDir folder;
  const std::string path = folder.file("run.json");
  CHECK(contains(test::message_of<FileError>([&] { load_train_config(path); }), path));
  test::write_file(path, with(""));
  CHECK(load_train_config(path).model == folder.file("m"));

  SECTION("or a model in one file, which has no other parts") {
    test::write_file(folder.file("m"), "");
    const std::string message = test::message_of<ConfigError>([&] { load_train_config(path); });
    CHECK(contains(message, "field 'vae': found nothing"));
  }
}

TEST_CASE("config: LoRA targets") {
  LoraConfig lora;
  const auto chosen = [&](const char* name) { return is_lora_target(lora, name); };
  lora.preset = "attention";
  CHECK(chosen("double_blocks.18.img_attn.qkv"));
  CHECK(chosen("double_blocks.0.txt_attn.proj"));
  CHECK(chosen("single_blocks.37.linear1"));
  CHECK_FALSE(chosen("single_blocks.37.linear2"));
  CHECK_FALSE(chosen("double_blocks.0.img_mlp.0"));
  lora.preset = "attention+mlp";
  CHECK(chosen("single_blocks.37.linear2"));
  CHECK(chosen("double_blocks.0.img_mlp.0"));
  CHECK_FALSE(chosen("double_blocks.0.img_mod.lin"));
  lora.preset = "all-linear";
  CHECK(chosen("double_blocks.0.img_mod.lin"));
  CHECK(chosen("single_blocks.0.modulation.lin"));
  CHECK_FALSE(chosen("img_in"));
  CHECK_FALSE(chosen("final_layer.linear"));
  lora = parse(with(R"x("lora": {"targets": ["img_in", "single_blocks\\.(1|2)\\.linear1"]})x")).lora;
  CHECK(chosen("img_in"));
  CHECK(chosen("single_blocks.2.linear1"));
  CHECK_FALSE(chosen("single_blocks.12.linear1"));
  CHECK_FALSE(chosen("double_blocks.0.img_attn.qkv"));
}

TEST_CASE("config: docs/config.md is what the table says") {
  const std::string text = config_reference_markdown();
  CHECK(test::read_file(std::string(TEST_DATA) + "/../../docs/config.md") == text);
  for (const ConfigField& field : config_fields()) {
    INFO(field.path);
    CHECK(contains(text, "| `" + field.leaf() + "` |"));
    CHECK(!field.doc.empty());
  }
  SECTION("and so is configs/schema.json") {
    CHECK(test::read_file(std::string(TEST_DATA) + "/../../configs/schema.json") == config_schema_json());
    for (const ConfigField& field : config_fields()) {
      INFO(field.path);
      CHECK(!field.schema.empty());
    }
  }
  SECTION("and so is configs/all-settings.json, which is valid") {
    const std::string all = config_template_json();
    CHECK(test::read_file(std::string(TEST_DATA) + "/../../configs/all-settings.json") == all);
    const TrainConfig c = parse(all);
    CHECK(c.data.resolution == std::vector<std::int64_t>{512, 768, 1024});
    for (const ConfigField& field : config_fields()) {
      INFO(field.path);
      CHECK(contains(all, "\"" + field.leaf() + "\": "));
    }
  }
  SECTION("and the ready configurations are valid") {
    std::size_t found = 0;
    for (const auto& entry : std::filesystem::directory_iterator(std::string(TEST_DATA) + "/../../configs")) {
      if (entry.path().filename() == "schema.json") continue;
      INFO(entry.path());
      CHECK(!parse(test::read_file(entry.path().string())).data.folders.empty());
      ++found;
    }
    CHECK(found >= 7);
  }
  SECTION("and its example is valid") {
    const std::size_t begin = text.find("```json\n") + 8;
    CHECK(parse(text.substr(begin, text.find("```", begin) - begin)).name == "my-style");
  }
}
