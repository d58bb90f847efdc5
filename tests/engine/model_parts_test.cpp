#include "engine/model_parts.h"

#include <cmath>
#include <filesystem>

#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using namespace squareq::test;

TEST_CASE("the parts of a diffusers folder are found, and used as its files say") {
  const ModelParts parts = find_model_parts(ASSETS "/FLUX-mini");
  CHECK(parts.transformer == ASSETS "/FLUX-mini/transformer");
  CHECK(parts.tokenizers == ASSETS "/FLUX-mini");
  CHECK(text_length(parts, true) == 32);
  const ScheduleShift shift = read_schedule(parts, true);
  CHECK(shift.dynamic);
  CHECK(std::fabs(shift.mu(64) - 0.4675) <= 1e-9);
}

TEST_CASE("a missing model or part is named") {
  CHECK(contains(message_of<FileError>([] { find_model_parts("/no/such/model"); }), "/no/such/model"));
  CHECK(contains(message_of<FileError>([] { require_part("", "vae", "autoencoder"); }), "vae"));
  const ModelParts single = find_model_parts(TEST_DATA "/golden/flux_a.safetensors");
  CHECK(single.vae.empty());
  CHECK(text_length(single, true) == 512);
  CHECK(text_length(single, false) == 256);
  CHECK(!read_schedule(single, false).dynamic);
}

TEST_CASE("a scheduler file with unusable values is refused by name") {
  const TempDir folder;
  std::filesystem::create_directories(folder.path() / "scheduler");
  const std::string file = folder.file("scheduler/scheduler_config.json");
  write_file(file, R"({"shift": "three"})");
  const ModelParts parts = find_model_parts(folder.path().string());
  const std::string message = message_of<FormatError>([&] { read_schedule(parts, true); });
  CHECK(contains(message, file + ": shift"));
  CHECK(contains(message, "three"));
}
