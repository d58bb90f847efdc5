#include "io/slab.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <filesystem>

#include "io/checkpoint.h"
#include "io/slab_build.h"
#include "io/slab_header.h"
#include "io/slab_quantize.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using namespace squareq::test;
namespace fs = std::filesystem;

namespace {

const std::string kFlux = std::string(TEST_DATA) + "/golden/flux_a.safetensors";
const std::string kT5 = std::string(TEST_DATA) + "/golden/t5_a.safetensors";

void build_flux(const std::string& path, const SlabOptions& options = {}, const std::string& source = kFlux) {
  const Checkpoint checkpoint = Checkpoint::open(source, Model::kTransformer);
  build_slab(checkpoint, flux_shape(checkpoint), path, options);
}

void build_t5(const std::string& path, const SlabOptions& options = {}) {
  const Checkpoint checkpoint = Checkpoint::open(kT5, Model::kT5);
  build_slab(checkpoint, t5_shape(checkpoint), path, options);
}

std::size_t files_in(const TempDir& folder) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()));
}

std::vector<float> values(const ConstView& view) {
  std::vector<float> out(static_cast<std::size_t>(view.count()));
  to_f32(view.data, view.dtype, out.data(), view.count());
  return out;
}

// The definition, one value at a time.
void check_int8(const Weight& weight, const std::vector<float>& source) {
  const std::vector<float> scales = values(weight.scales);
  const std::vector<float> stored = values(weight.values);
  std::size_t wrong = 0;
  for (std::int64_t r = 0; r < weight.out(); ++r) {
    const float* row = source.data() + r * weight.in();
    float largest = 0.0F;
    for (std::int64_t c = 0; c < weight.in(); ++c) largest = std::fmax(largest, std::fabs(row[c]));
    const float scale = largest / 127.0F;
    if (scales[static_cast<std::size_t>(r)] != scale) ++wrong;
    for (std::int64_t c = 0; c < weight.in(); ++c) {
      const float q = std::rint(row[c] / scale);
      if (stored[static_cast<std::size_t>(r * weight.in() + c)] != q) ++wrong;
    }
  }
  CHECK(wrong == 0);
}

// A copy of a golden file with some tensors changed or left out.
template <class Change>
std::string changed_copy(const TempDir& folder, const std::string& from, Change change) {
  const SafetensorsFile file(from);
  std::vector<TensorOut> tensors;
  for (const TensorInfo& info : file.tensors()) {
    TensorOut tensor{info.name, info.dtype, info.shape, file.data(info)};
    if (change(tensor)) tensors.push_back(tensor);
  }
  const std::string path = folder.file("changed.safetensors");
  write_safetensors(path, tensors, file.metadata());
  return path;
}

// Replaces text of equal length in the header and makes its checksum right again.
void edit_header(const std::string& path, const std::string& from, const std::string& to) {
  std::string bytes = read_file(path);
  const std::uint64_t begin = SafetensorsFile(path).data_begin();
  const std::size_t at = bytes.find(from);
  REQUIRE(at < begin);
  REQUIRE(from.size() == to.size());
  bytes.replace(at, to.size(), to);
  const std::string checksum = header_checksum(std::as_bytes(std::span(bytes)).first(begin), path);
  const std::string key = R"("header_checksum":")";
  bytes.replace(bytes.find(key) + key.size(), checksum.size(), checksum);
  write_file(path, bytes);
}

void flip(std::fstream& file, std::uint64_t position) {
  file.seekg(static_cast<std::streamoff>(position));
  const int byte = file.get();
  file.seekp(static_cast<std::streamoff>(position));
  file.put(static_cast<char>(byte ^ 0x10));
  file.flush();
}

struct Interrupted {};

// Stops a build after `blocks` blocks.
SlabOptions stop_after(int blocks) {
  return {.threads = 2, .progress = [left = blocks](const SlabProgress&) mutable {
            if (--left == 0) throw Interrupted();
          }};
}

}  // namespace

TEST_CASE("slab: blocks and tensors are aligned, contiguous and in execution order") {
  const TempDir folder;
  const std::string path = folder.file("a.slab");
  build_flux(path);
  const SafetensorsFile file(path);
  const Slab slab(path);
  CHECK(file.data_begin() % 4096 == 0);
  CHECK(slab.file_bytes() == fs::file_size(path));
  CHECK(slab.data_offset() == file.data_begin());

  std::uint64_t end = file.data_begin();
  for (const TensorInfo& tensor : file.tensors()) {
    CHECK(tensor.begin == end);
    if (!tensor.name.starts_with("__pad.")) CHECK(tensor.begin % 256 == 0);
    end = tensor.end;
  }
  CHECK(end == slab.file_bytes());

  end = slab.data_offset();
  std::vector<std::string> ids;
  for (const SlabBlock& block : slab.blocks()) {
    CHECK(block.offset == end);
    CHECK(block.offset % 4096 == 0);
    CHECK(block.bytes % 4096 == 0);
    for (const std::string& name : block.tensors) {
      const TensorInfo& tensor = file.get(name);
      CHECK((tensor.begin >= block.offset && tensor.end <= block.offset + block.bytes));
    }
    end = block.offset + block.bytes;
    ids.push_back(block.id);
  }
  CHECK(ids == std::vector<std::string>{"embed", "modulation.double_blocks.0", "modulation.double_blocks.1",
                                        "modulation.single_blocks.0", "modulation.single_blocks.1",
                                        "modulation.single_blocks.2", "double_blocks.0", "double_blocks.1",
                                        "single_blocks.0", "single_blocks.1", "single_blocks.2", "final_layer"});
}

TEST_CASE("slab: INT8 layers equal the definition, everything else is as in the checkpoint") {
  const TempDir folder;
  const std::string path = folder.file("a.slab");
  const bool t5 = GENERATE(false, true);
  t5 ? build_t5(path) : build_flux(path);
  const SafetensorsFile source(t5 ? kT5 : kFlux);
  const Slab slab(path);
  slab.verify_all();
  std::size_t quantised = 0;
  for (const SlabLayer& layer : slab.layers()) {
    const Weight weight = slab.weight(layer.name);
    const std::vector<float> expected = source.read_f32(layer.name + ".weight", {layer.out, layer.in});
    const bool inside = t5 ? layer.block.starts_with("encoder.block") && !layer.name.ends_with("attention_bias")
                           : layer.block != "embed" && layer.block != "final_layer";
    CHECK(weight.codec == (inside ? Codec::kInt8Rows : Codec::kFloat));
    if (weight.codec == Codec::kFloat) {
      CHECK(values(weight.values) == expected);
      CHECK(layer.relative_l2 == 0.0);
      continue;
    }
    ++quantised;
    check_int8(weight, expected);
    std::vector<float> stored = values(weight.values);
    const std::vector<float> scales = values(weight.scales);
    for (std::size_t i = 0; i < stored.size(); ++i) stored[i] *= scales[i / static_cast<std::size_t>(layer.in)];
    const double error = relative_l2(stored, expected);
    CHECK(std::abs(error - layer.relative_l2) <= 1e-5 * error);
    CHECK(std::abs(1.0 - layer.cosine - error * error / 2) <= 0.1 * error * error);
    CHECK((layer.max_abs > 0.0 && layer.max_abs <= 0.5001 * *std::max_element(scales.begin(), scales.end())));
  }
  CHECK(quantised == (t5 ? 21U : 29U));
  for (const TensorInfo& tensor : source.tensors()) {
    if (tensor.shape.size() == 1) CHECK(values(slab.vector(tensor.name)) == source.read_f32(tensor.name));
  }
}

TEST_CASE("slab: the float codec keeps every value and the source's half types") {
  const TempDir folder;
  const std::string checkpoint = folder.file("model");
  FluxShape shape = std::get<FluxShape>(named_shape("mini"));
  shape.double_blocks = shape.single_blocks = 1;
  synthesize_checkpoint(shape, checkpoint);
  const std::string path = folder.file("a.slab");
  build_flux(path, {.codec = Codec::kFloat}, checkpoint);
  const Slab slab(path);
  const Checkpoint source = Checkpoint::open(checkpoint, Model::kTransformer);
  for (const SlabLayer& layer : slab.layers()) {
    const Weight weight = slab.weight(layer.name);
    CHECK(weight.codec == Codec::kFloat);
    CHECK(weight.values.dtype == DType::BF16);
    CHECK(values(weight.values) == source.read_f32(layer.name + ".weight"));
    CHECK(weight.bias.dtype == DType::F32);
  }
}

TEST_CASE("slab: an interrupted build goes on and ends byte-identical") {
  const TempDir folder;
  build_flux(folder.file("whole.slab"));
  const std::string whole = read_file(folder.file("whole.slab"));
  const std::string path = folder.file("a.slab");
  const std::string journal = path + ".partial.journal";

  const auto finish = [&](bool resumes) {
    std::uint64_t resumed = 0;
    build_flux(path, {.threads = 1, .progress = [&](const SlabProgress& p) { resumed = p.resumed; }});
    CHECK((resumed > 0) == resumes);
    CHECK(read_file(path) == whole);
    CHECK(files_in(folder) == 2);
  };
  SECTION("after an exception, twice") {
    CHECK_THROWS_AS(build_flux(path, stop_after(2)), Interrupted);
    CHECK_THROWS_AS(build_flux(path, stop_after(3)), Interrupted);
    CHECK(!fs::exists(path));
    finish(true);
  }
  SECTION("after SIGKILL") {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      build_flux(path, {.threads = 1, .progress = [left = 4](const SlabProgress&) mutable {
                          if (--left == 0) raise(SIGKILL);
                        }});
      _exit(1);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
    finish(true);
  }
  SECTION("with a journal line that was cut") {
    CHECK_THROWS_AS(build_flux(path, stop_after(4)), Interrupted);
    const std::string text = read_file(journal);
    write_file(journal, text.substr(0, text.size() - 20));
    finish(true);
  }
  SECTION("with a block that did not reach the disk") {
    CHECK_THROWS_AS(build_flux(path, stop_after(4)), Interrupted);
    std::fstream partial(path + ".partial", std::ios::in | std::ios::out | std::ios::binary);
    flip(partial, Slab(folder.file("whole.slab")).blocks()[2].offset + 5);
    partial.close();
    finish(true);
  }
  SECTION("but not with other settings") {
    SlabOptions options = stop_after(4);
    options.codec = Codec::kFloat;
    CHECK_THROWS_AS(build_flux(path, options), Interrupted);
    finish(false);
  }
  SECTION("and not by two at a time") {
    std::string message;
    build_flux(path,
               {.progress = [&](const SlabProgress&) { message = message_of<FileError>([&] { build_flux(path); }); }});
    CHECK(contains(message, "another process"));
    CHECK(read_file(path) == whole);
  }
}

TEST_CASE("slab: a flipped byte anywhere is found") {
  const TempDir folder;
  const std::string path = folder.file("a.slab");
  build_t5(path);
  std::vector<std::uint64_t> positions;
  {
    const SafetensorsFile file(path);
    for (std::uint64_t p = 0; p < file.data_begin(); p += 11) positions.push_back(p);
    for (const TensorInfo& tensor : file.tensors()) {
      positions.insert(positions.end(), {tensor.begin, tensor.begin + (tensor.end - tensor.begin) / 2, tensor.end - 1});
    }
  }
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  for (const std::uint64_t position : positions) {
    flip(file, position);
    const std::string message = message_of<FormatError>([&] { Slab(path).verify_all(); });
    INFO("byte " << position);
    CHECK(contains(message, path));
    flip(file, position);
  }
  Slab(path).verify_all();

  flip(file, Slab(path).block("encoder.block.1").offset + 100);
  const Slab slab(path);
  slab.verify_block("encoder.block.0");
  const std::string message = message_of<FormatError>([&] { slab.verify_block("encoder.block.1"); });
  CHECK(contains(message, "encoder.block.1"));
  CHECK(contains(message, slab.block("encoder.block.1").checksum));
  file.close();

  fs::resize_file(path, fs::file_size(path) - 4096);
  CHECK_THROWS_AS(Slab(path), FormatError);
}

TEST_CASE("slab: headers that do not fit are refused") {
  const TempDir folder;
  const std::string path = folder.file("a.slab");
  build_t5(path);
  const auto refusal = [&] { return message_of<FormatError>([&] { Slab slab(path); }); };
  SECTION("another version") {
    edit_header(path, R"("version":"1")", R"("version":"2")");
    CHECK(contains(refusal(), "version 2"));
    CHECK(contains(refusal(), "version 1"));
  }
  SECTION("not a slab") {
    CHECK(contains(message_of<FormatError>([] { Slab slab(kT5); }), "not a slab"));
  }
  SECTION("a misshapen tensor") {
    edit_header(path, R"("shape":[64,48])", R"("shape":[48,64])");
    CHECK(contains(refusal(), "[48, 64]"));
    CHECK(contains(refusal(), "[64, 48]"));
    CHECK(contains(refusal(), "SelfAttention.q.weight"));
  }
  SECTION("a missing tensor") {
    edit_header(path, R"("encoder.final_layer_norm.weight":)", R"("encoder.final_layer_norm.wexght":)");
    CHECK(contains(refusal(), "encoder.final_layer_norm.weight"));
  }
  SECTION("another data type") {
    edit_header(path, R"({"dtype":"I8")", R"({"dtype":"U8")");
    CHECK(contains(refusal(), "U8"));
  }
  SECTION("another shape of the network") {
    edit_header(path, R"(\"layers\":3)", R"(\"layers\":2)");
    CHECK(!refusal().empty());
  }
  SECTION("absurd sizes") {
    edit_header(path, R"(\"vocab\":100,)", R"(\"vocab\":1e8,)");
    CHECK(contains(refusal(), "vocab"));
  }
  SECTION("an unknown codec") {
    edit_header(path, R"(\"codec\":\"int8\")", R"(\"codec\":\"int4\")");
    CHECK(contains(refusal(), "int4"));
  }
  SECTION("a block elsewhere") {
    edit_header(path, R"(\"offset\":20480)", R"(\"offset\":24576)");
    CHECK(contains(refusal(), "encoder.block.0"));
  }
}

TEST_CASE("slab: what is not in it, or of another network, is named") {
  const TempDir folder;
  build_t5(folder.file("a.slab"));
  const Slab slab(folder.file("a.slab"));
  CHECK(contains(message_of<ConfigError>([&] { slab.flux_shape(); }), "t5"));
  CHECK(slab.t5_shape().width == 48);
  CHECK(contains(message_of<FormatError>([&] { slab.weight("img_in"); }), "img_in"));
  CHECK(contains(message_of<FormatError>([&] { slab.vector("img_in.bias"); }), "img_in.bias"));
  CHECK(
      contains(message_of<FormatError>([&] { slab.vector("encoder.block.0.layer.0.SelfAttention.q.weight"); }), "I8"));
  CHECK(contains(message_of<FormatError>([&] { slab.verify_block("nothing"); }), "nothing"));
}

TEST_CASE("slab: checkpoints that cannot be built are refused and leave nothing") {
  const TempDir folder;
  const TempDir target;
  const std::string path = target.file("a.slab");
  const std::string name = "double_blocks.1.txt_mlp.0.weight";
  std::vector<float> weights = SafetensorsFile(kFlux).read_f32(name);
  const auto refusal = [&](const std::string& source) {
    const std::string message = message_of<Error>([&] { build_flux(path, {}, source); });
    CHECK(files_in(target) == 0);
    CHECK(contains(message, "changed.safetensors"));
    CHECK(contains(message, name));
    return message;
  };
  SECTION("a missing tensor") {
    CHECK(!refusal(changed_copy(folder, kFlux, [&](TensorOut& t) { return t.name != name; })).empty());
  }
  SECTION("a misshapen tensor") {
    const std::string message = refusal(changed_copy(folder, kFlux, [&](TensorOut& t) {
      if (t.name == name) t.shape = {128, 128};
      return true;
    }));
    CHECK(contains(message, "[128, 128]"));
    CHECK(contains(message, "[256, 64]"));
  }
  SECTION("NaN and infinity") {
    const float bad = GENERATE(std::nanf(""), INFINITY, -INFINITY);
    weights[7 * 64 + 3] = bad;
    const std::string message = refusal(changed_copy(folder, kFlux, [&](TensorOut& t) {
      if (t.name == name) t.data = std::as_bytes(std::span(weights));
      return true;
    }));
    CHECK(contains(message, "row 7"));
  }
}

TEST_CASE("slab: unwritable targets are said clearly") {
  const TempDir folder;
  CHECK(contains(message_of<FileError>([&] { build_t5(folder.file("nowhere/a.slab")); }), "nowhere/a.slab"));
  CHECK(contains(message_of<FileError>([&] { build_t5(folder.path().string()); }), "a folder"));
  CHECK(files_in(folder) == 0);
}

TEST_CASE("slab: synthetic slabs depend on the seed alone and equal those of synthetic checkpoints") {
  const TempDir folder;
  SlabShape shape = named_shape(GENERATE(as<std::string>(), "mini", "t5-xxl"));
  if (auto* flux = std::get_if<FluxShape>(&shape)) {
    flux->double_blocks = 1;
    flux->single_blocks = 2;
  } else {
    shape = T5Shape{.vocab = 300, .width = 96, .layers = 2, .heads = 4, .head_dim = 16, .mlp_hidden = 160};
  }
  const std::string path = folder.file("a.slab");
  synthesize_slab(shape, path, {.seed = 3, .threads = 1});
  synthesize_slab(shape, folder.file("b.slab"), {.seed = 3, .threads = 3});
  synthesize_slab(shape, folder.file("c.slab"), {.seed = 4});
  CHECK(read_file(path) == read_file(folder.file("b.slab")));
  CHECK(read_file(path) != read_file(folder.file("c.slab")));
  Slab(path).verify_all();

  const std::uint64_t shard_bytes = GENERATE(as<std::uint64_t>(), 200000U, 1000000000U);
  synthesize_checkpoint(shape, folder.file("model"), {.seed = 3}, shard_bytes);
  const bool flux = std::holds_alternative<FluxShape>(shape);
  const Checkpoint checkpoint = Checkpoint::open(folder.file("model"), flux ? Model::kTransformer : Model::kT5);
  CHECK((checkpoint.files().size() > 1) == (shard_bytes < 1000000U));
  const SlabShape read = flux ? SlabShape(flux_shape(checkpoint)) : SlabShape(t5_shape(checkpoint));
  build_slab(checkpoint, read, folder.file("d.slab"));
  CHECK(read_file(path) == read_file(folder.file("d.slab")));
  CHECK(contains(message_of<FileError>([&] { synthesize_checkpoint(shape, folder.file("model")); }), "empty"));
}

TEST_CASE("slab: a file of the first version opens, and random weights are still those numbers") {
  const std::string path = std::string(TEST_DATA) + "/slab/t5_tiny.slab";
  const Slab stored(path);
  stored.verify_all();
  const TempDir folder;
  synthesize_slab(stored.shape(), folder.file("a.slab"), {.seed = 1});
  const Slab made(folder.file("a.slab"));
  REQUIRE(made.blocks().size() == stored.blocks().size());
  for (std::size_t i = 0; i < made.blocks().size(); ++i) {
    CHECK(made.blocks()[i].checksum == stored.blocks()[i].checksum);
  }
}

TEST_CASE("slab: rows of any length and content are quantised by the definition") {
  const std::int64_t cols = GENERATE(1, 3, 4, 511, 512, 515, 1030);
  std::vector<float> w(static_cast<std::size_t>(5 * cols));
  fill_random(w, 77);
  const auto row = [&](std::int64_t r) { return std::span(w).subspan(static_cast<std::size_t>(r * cols)); };
  std::fill_n(row(1).begin(), cols, 0.0F);
  std::fill_n(row(2).begin(), cols, 1e-45F);  // its scale is no float
  row(3)[0] = 127.0F;
  if (cols > 2) row(3)[1] = 2.5F, row(3)[2] = -3.5F;
  std::vector<std::int8_t> q(w.size());
  std::vector<float> scales(5);
  const QuantizationError error = quantize_rows(w.data(), 5, cols, q.data(), scales.data());
  CHECK(scales[1] == 1.0F);
  CHECK(scales[2] == 1.0F);
  CHECK(q[static_cast<std::size_t>(2 * cols)] == 0);
  if (cols > 2)
    CHECK((q[static_cast<std::size_t>(3 * cols + 1)] == 2 && q[static_cast<std::size_t>(3 * cols + 2)] == -4));
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < w.size(); ++i) {
    const float scale = scales[i / static_cast<std::size_t>(cols)];
    CHECK(static_cast<float>(q[i]) == std::rint(w[i] / scale));
    const double d = static_cast<double>(scale * static_cast<float>(q[i])) - static_cast<double>(w[i]);
    difference += d * d;
    norm += static_cast<double>(w[i]) * static_cast<double>(w[i]);
  }
  CHECK(std::abs(error.relative_l2() - std::sqrt(difference / norm)) <= 1e-6 * error.relative_l2());
  CHECK(QuantizationError{}.relative_l2() == 0.0);
  CHECK(QuantizationError{}.cosine() == 1.0);
}
