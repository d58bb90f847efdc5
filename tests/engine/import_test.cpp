#include "engine/import_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/config.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using test::contains;

namespace {

const std::string kFolder = TEST_DATA "/import/";

std::vector<std::string> fields_of(const std::vector<ImportNote>& notes) {
  std::vector<std::string> fields;
  for (const ImportNote& note : notes) fields.push_back(note.field);
  return fields;
}

bool names(const std::vector<ImportNote>& notes, const std::string& field) {
  const std::vector<std::string> fields = fields_of(notes);
  return std::find(fields.begin(), fields.end(), field) != fields.end();
}

ImportedConfig import_text(ForeignTrainer trainer, const std::string& text) {
  const test::TempDir dir;
  test::write_file(dir.file("settings"), text);
  return import_config(trainer, dir.file("settings"));
}

}  // namespace

TEST_CASE("import: a job of ai-toolkit") {
  const ImportedConfig imported = import_config(ForeignTrainer::kAiToolkit, kFolder + "ai_toolkit_flux.yaml");
  const TrainConfig c = parse_train_config(imported.json, "/runs/run.json");
  CHECK(c.name == "harbour_lights_v1");
  CHECK(c.data.folder == "/data/harbour");
  CHECK(c.data.resolution == std::vector<std::int64_t>{512, 768, 1024});
  CHECK(c.data.trigger == "h4rb0ur");
  CHECK(c.data.caption_dropout == 0.05);
  CHECK(c.lora.rank == 32);
  CHECK(c.lora.alpha == 32.0);  // which is what it does for FLUX
  CHECK(c.lora.preset == "all-linear");
  CHECK(c.lora.split_qkv);
  CHECK(c.save_dtype == DType::F16);
  CHECK(c.save_every == 200);
  CHECK(c.training.steps == 3000);
  CHECK(c.training.batch_size == 2);
  CHECK(c.training.accumulation == 4);
  CHECK(c.training.learning_rate == 2e-4);
  CHECK(c.training.lr_schedule == TrainingConfig::Schedule::kCosine);
  CHECK(c.training.weight_decay == 1e-4);
  CHECK(c.training.betas == std::array<double, 2>{0.9, 0.99});
  CHECK(c.training.timestep_sampling == TimestepSampling::kSigmoid);
  CHECK(c.training.optimizer == TrainingConfig::Optimizer::kAdamW8Bit);
  CHECK(c.training.ema_decay == 0.99);
  CHECK(c.preview.prompts ==
        std::vector<std::string>{"a lighthouse at dusk, h4rb0ur", "a fishing boat: nets, ropes and gulls"});
  CHECK(c.preview.every == 200);
  CHECK(c.preview.size == std::array<std::int64_t, 2>{1024, 1024});
  CHECK(names(imported.remarks, "config.process[0].network.linear_alpha"));
  const std::string process = "config.process[0].";
  CHECK(fields_of(imported.unused) ==
        std::vector<std::string>{process + "performance_log_every", process + "device",
                                 process + "save.max_step_saves_to_keep", process + "save.push_to_hub",
                                 process + "datasets[0].cache_latents_to_disk", process + "train.dtype",
                                 process + "model.low_vram", process + "sample.neg", "meta.name", "meta.version"});
  CHECK(contains(imported.missing, "model"));
  CHECK(contains(import_report(imported), "config.process[0].device = \"cuda:0\""));
}

TEST_CASE("import: settings and data set of sd-scripts") {
  const ImportedConfig imported = import_config(ForeignTrainer::kKohya, kFolder + "kohya_flux.toml");
  const TrainConfig c = parse_train_config(imported.json, "/runs/run.json");
  CHECK(c.model == "/models/flux1-dev.safetensors");
  CHECK(c.t5 == "/models/t5xxl_fp16.safetensors");
  CHECK(c.name == "harbour");
  CHECK(c.data.folder == "/data/harbour");
  CHECK(c.lora.rank == 16);
  CHECK(c.lora.alpha == 8.0);
  CHECK(is_lora_target(c.lora, "single_blocks.3.modulation.lin"));
  CHECK(!is_lora_target(c.lora, "double_blocks.3.img_attn.qkv"));
  CHECK(c.lora.split_qkv);
  CHECK(c.training.seed == 7);
  CHECK(c.training.batch_size == 2);  // the data set's own
  CHECK(c.training.warmup_steps == 100);
  CHECK(c.training.weight_decay == 0.05);
  CHECK(c.training.betas == std::array<double, 2>{0.9, 0.99});
  CHECK(c.training.timestep_sampling == TimestepSampling::kShift);
  CHECK(c.training.shift == 3.1582);
  CHECK(c.data.fixed_size == std::array<std::int64_t, 2>{768, 1024});
  CHECK(c.data.repeats == 10);
  CHECK(c.data.keep_tags == 1);
  CHECK(c.data.default_caption == "h4rb0ur");
  CHECK(c.lora.rank_dropout == 0.1);
  CHECK(fields_of(imported.unused) == std::vector<std::string>{"fp8_base", "mixed_precision", "cache_latents_to_disk",
                                                               "cache_text_encoder_outputs", "sdpa", "sample_prompts"});
}

TEST_CASE("import: several folders") {
  const ImportedConfig kohya = import_text(ForeignTrainer::kKohya, R"(
    pretrained_model_name_or_path = "/models/flux"
    [general]
    flip_aug = true
    [[datasets]]
    resolution = 1024
    enable_bucket = true
    bucket_no_upscale = true
    [[datasets.subsets]]
    image_dir = "/a"
    num_repeats = 3
    flip_aug = false
    [[datasets.subsets]]
    image_dir = "/b"
    is_reg = true
    [[datasets]]
    resolution = "512,512"
    enable_bucket = true
    bucket_no_upscale = true
    [[datasets.subsets]]
    image_dir = "/a"
    num_repeats = 3
    flip_aug = false
  )");
  CHECK(kohya.unused.empty());
  const TrainConfig c = parse_train_config(kohya.json, "/runs/run.json");
  REQUIRE(c.data.folders.size() == 2);
  CHECK(c.data.folders[0].folder == "/a");
  CHECK(c.data.folders[0].repeats == 3);
  CHECK(!c.data.folders[0].flip);
  CHECK(c.data.folders[1].regularisation);
  CHECK(c.data.folders[1].flip);
  CHECK(c.data.resolution == std::vector<std::int64_t>{512, 1024});
  CHECK(!c.data.upscale);
  CHECK(names(kohya.remarks, "data.resolution"));

  const ImportedConfig toolkit = import_text(ForeignTrainer::kAiToolkit, R"(
config:
  process:
    - type: sd_trainer
      model: {name_or_path: /models/flux}
      datasets:
        - {folder_path: /a, num_repeats: 3, flip_x: true, resolution: 768}
        - {folder_path: /b, is_reg: true, mask_path: /masks, resolution: [512, 768]}
)");
  CHECK(toolkit.unused.empty());
  const TrainConfig t = parse_train_config(toolkit.json, "/runs/run.json");
  REQUIRE(t.data.folders.size() == 2);
  CHECK(t.data.folders[0].flip);
  CHECK(t.data.folders[1].mask_folder == "/masks");
  CHECK(t.data.resolution == std::vector<std::int64_t>{512, 768});
}

TEST_CASE("import: what the other trainer does without being told is written out") {
  const ImportedConfig kohya = import_text(ForeignTrainer::kKohya, "output_name = \"x\"\n");
  CHECK(nlohmann::json::parse(kohya.json)["lora"] ==
        nlohmann::json({{"rank", 4}, {"alpha", 1.0}, {"targets", "all-linear"}}));
  CHECK(nlohmann::json::parse(kohya.json)["training"]["guidance"] == 3.5);
  CHECK(names(kohya.remarks, "lora.alpha"));
  CHECK(nlohmann::json::parse(kohya.json)["training"]["timestep_sampling"] == "sigma");
  CHECK(contains(kohya.missing, "data.folder"));
}

TEST_CASE("import: every field is taken over, or listed with its value") {
  // Names that nobody knows, values that we do not take.
  const ImportedConfig odd = import_text(ForeignTrainer::kKohya,
                                         "surprise = 1979-05-27\nnetwork_dim = 0\nlr_scheduler = \"wobbly\"\n"
                                         "[[datasets]]\nresolution = \"500\"\n[[datasets]]\nresolution = 512\n");
  CHECK(fields_of(odd.unused) == std::vector<std::string>{"surprise", "network_dim", "lr_scheduler",
                                                          "datasets[0].resolution", "datasets[1].resolution"});
  CHECK(odd.unused[0].value == "\"1979-05-27\"");
  CHECK(contains(odd.unused[1].remark, "lora.rank takes"));
  CHECK(contains(odd.unused[2].remark, "training.lr_schedule"));
}

TEST_CASE("import: files that are no settings are refused with their place") {
  const auto message = [](ForeignTrainer trainer, const std::string& text) {
    return test::message_of<Error>([&] { import_text(trainer, text); });
  };
  CHECK(contains(message(ForeignTrainer::kAiToolkit, "a: [1"), "line"));
  CHECK(contains(message(ForeignTrainer::kAiToolkit, "config: 1"), "config.process"));
  CHECK(contains(message(ForeignTrainer::kAiToolkit, ""), "no settings"));
  CHECK(contains(message(ForeignTrainer::kAiToolkit, "a: &x\n  b: *x\n"), "64 levels"));
  std::string bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n";
  for (int i = 1; i < 9; ++i) {
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [";
    for (int k = 0; k < 10; ++k) bomb += "*a" + std::to_string(i - 1) + ",";
    bomb += "]\n";
  }
  CHECK(contains(message(ForeignTrainer::kAiToolkit, bomb), "100,000"));
  CHECK(contains(message(ForeignTrainer::kAiToolkit, std::string(100'000, '[')), "64 levels"));
  CHECK(contains(message(ForeignTrainer::kAiToolkit, std::string(2'000'000, ' ')), "megabyte"));
  CHECK(contains(message(ForeignTrainer::kKohya, "a = [1\nb="), "line 2"));
  std::string dots = "a";
  for (int i = 0; i < 400'000; ++i) dots += ".a";
  CHECK(contains(message(ForeignTrainer::kKohya, dots + " = 1"), "dots"));
  CHECK(contains(message(ForeignTrainer::kKohya, "a = 1\na = 2"), "TOML"));
  CHECK(contains(message(ForeignTrainer::kKohya, "a = 1\n[[[datasets]]\n"), "TOML"));
  CHECK(contains(message(ForeignTrainer::kKohya, std::string("output_name = \"\xff\xfe\"")), "UTF-8"));
  CHECK_THROWS_AS(import_config(ForeignTrainer::kKohya, "/nowhere/x.toml"), FileError);
}

TEST_CASE("import: a data set file that is not there is told") {
  const ImportedConfig imported = import_text(ForeignTrainer::kKohya, "dataset_config = \"nowhere.toml\"");
  REQUIRE(names(imported.unused, "dataset_config"));
  CHECK(contains(imported.unused[0].remark, "no such file"));
}
