#include "io/safetensors.h"

#include <array>

#include "io/file.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/io/tensor_files.h"

using namespace squareq;
using test::contains;

namespace {

SafetensorsHeader parse(const std::string& file) { return parse_safetensors(std::as_bytes(std::span(file)), "f.sft"); }

// Message for a file with this header and `bytes` of data; empty if it is accepted.
std::string problem(std::string_view header, std::size_t bytes) {
  return test::message_of<FormatError>([&] { parse(test::raw_safetensors(header, std::string(bytes, '\0'))); });
}

}  // namespace

TEST_CASE("safetensors: what is written is read, whatever the order it came in") {
  const test::TempDir dir;
  test::TensorFile file;
  file.add("b", DType::BF16, {3}, {1.5F, -2.0F, 0.25F});
  file.add("a", DType::F32, {2, 2}, {1, 2, 3, 4});
  file.add("c", DType::F8_E4M3, {1, 1}, {448.0F});
  file.add("scalar", DType::F16, {}, {7.0F});
  file.add("empty", DType::F32, {0, 5}, {});
  file.metadata()["who"] = "me \xE2\x82\xAC \"quoted\"";
  file.write(dir.file("x.safetensors"));

  const SafetensorsFile read(dir.file("x.safetensors"));
  CHECK(read.data_begin() % 8 == 0);
  CHECK(read.metadata().at("who") == file.metadata()["who"]);
  CHECK(read.read_f32("a", {2, 2}) == std::vector<float>{1, 2, 3, 4});
  CHECK(read.read_f32("b") == std::vector<float>{1.5F, -2.0F, 0.25F});
  CHECK(read.read_f32("c") == std::vector<float>{448.0F});
  CHECK(read.read_f32("scalar", {}) == std::vector<float>{7.0F});
  CHECK(read.read_f32("empty").empty());
  CHECK(read.tensors().front().name == "a");
  CHECK(read.find("none") == nullptr);

  test::TensorFile other;
  other.add("scalar", DType::F16, {}, {7.0F});
  other.add("empty", DType::F32, {0, 5}, {});
  other.add("c", DType::F8_E4M3, {1, 1}, {448.0F});
  other.add("a", DType::F32, {2, 2}, {1, 2, 3, 4});
  other.add("b", DType::BF16, {3}, {1.5F, -2.0F, 0.25F});
  other.metadata() = file.metadata();
  other.write(dir.file("y.safetensors"));
  CHECK(read_text(dir.file("x.safetensors")) == read_text(dir.file("y.safetensors")));
}

TEST_CASE("safetensors: golden files are read") {
  const SafetensorsFile file(TEST_DATA "/golden/flux_a.safetensors");
  CHECK(file.tensors().size() == 92);
  CHECK(file.get("img_in.weight").shape == std::vector<std::int64_t>{64, 64});
  CHECK(contains(file.metadata().at("config"), "axes"));
}

TEST_CASE("safetensors: data need not be aligned, gaps are allowed") {
  const test::TempDir dir;
  const std::array<float, 2> values{1.25F, -3.0F};
  std::string data(3, 'x');
  data.append(reinterpret_cast<const char*>(values.data()), 8);
  test::write_file(dir.file("x"),
                   test::raw_safetensors(R"({"odd":{"dtype":"F32","shape":[2],"data_offsets":[3,11]}})", data));
  CHECK(SafetensorsFile(dir.file("x")).read_f32("odd") == std::vector<float>{1.25F, -3.0F});
}

TEST_CASE("safetensors: a dtype we do not know matters only when the tensor is used") {
  const test::TempDir dir;
  test::write_file(dir.file("x"), test::raw_safetensors(R"({"new":{"dtype":"F4","shape":[4],"data_offsets":[0,2]},)"
                                                        R"("old":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
                                                        "abc"));
  const SafetensorsFile file(dir.file("x"));
  CHECK(file.read_f32("old") == std::vector<float>{99.0F});
  REQUIRE(file.find("new") != nullptr);
  const std::string message = test::message_of<FormatError>([&] { file.read_f32("new"); });
  CHECK(contains(message, dir.file("x")));
  CHECK(contains(message, "'new'"));
  CHECK(contains(message, "dtype F4"));
}

TEST_CASE("safetensors: missing and misshapen tensors are named") {
  const test::TempDir dir;
  test::TensorFile out;
  out.add("a", DType::F32, {2, 3}, std::vector<float>(6));
  out.write(dir.file("x"));
  const SafetensorsFile file(dir.file("x"));
  CHECK(contains(test::message_of<FormatError>([&] { file.get("b"); }), "tensor 'b'"));
  const std::string shape = test::message_of<FormatError>([&] { file.read_f32("a", {3, 2}); });
  CHECK(contains(shape, "[2, 3]"));
  CHECK(contains(shape, "[3, 2]"));
}

TEST_CASE("safetensors: damaged files are refused") {
  const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  REQUIRE(problem(good, 8).empty());
  CHECK(contains(problem(good, 7), "truncated"));
  CHECK(contains(test::message_of<FormatError>([] { parse(""); }), "0 bytes"));
  CHECK(contains(test::message_of<FormatError>([] { parse("garbage"); }), "7 bytes"));
  CHECK(contains(test::message_of<FormatError>([] { parse("garbage that is longer"); }), "header length"));

  std::string long_header = test::raw_safetensors(good, std::string(8, '\0'));
  long_header[0] = static_cast<char>(good.size() + 9);
  CHECK(contains(test::message_of<FormatError>([&] { parse(long_header); }), "header length"));
  const std::string whole = test::raw_safetensors(good, std::string(8, '\0'));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    CHECK_THROWS_AS(parse(whole.substr(0, size)), FormatError);
  }
}

TEST_CASE("safetensors: overlaps, overflows and wrong sizes are refused") {
  const auto two = [](const char* first, const char* second) {
    return std::string(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)") + first +
           R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
  };
  CHECK(problem(two("[0,4]", "[4,8]"), 8).empty());
  CHECK(contains(problem(two("[0,4]", "[3,7]"), 8), "overlaps"));
  CHECK(contains(problem(two("[2,6]", "[2,6]"), 8), "overlaps"));
  CHECK(contains(problem(two("[0,4]", "[5,9]"), 8), "data_offsets [5, 9]"));
  CHECK(contains(problem(two("[0,4]", "[8,4]"), 8), "data_offsets [8, 4]"));
  CHECK(contains(problem(two("[0,4]", "[18446744073709551612,4]"), 8), "data_offsets"));
  CHECK(contains(problem(two("[0,4]", "[4,5]"), 8), "1 bytes"));
  CHECK(contains(problem(two("[0,4]", "[4]"), 8), "data_offsets"));
  CHECK(contains(problem(two("[0,4]", "[-4,0]"), 8), "-4"));
  CHECK(contains(problem(two("[0,4]", "[0.5,4.5]"), 8), "0.5"));
  CHECK(contains(problem(two("[0,4]", "\"x\""), 8), "data_offsets"));
  const auto shaped = [](const char* shape) {
    return std::string(R"({"a":{"dtype":"F32","data_offsets":[0,8],"shape":)") + shape + "}}";
  };
  CHECK(contains(problem(shaped("[4611686018427387905,1]"), 8), "2^64"));
  CHECK(contains(problem(shaped("[4294967296,4294967296,2]"), 8), "2^64"));
  CHECK(contains(problem(shaped("[18446744073709551615]"), 8), "2^63"));
  CHECK(contains(problem(shaped("[-2]"), 8), "-2"));
  CHECK(contains(problem(shaped("[3]"), 8), "12 bytes"));
  CHECK(contains(problem(shaped("[[2]]"), 8), "nested"));
  CHECK(contains(problem(shaped("2"), 8), "shape"));
}

TEST_CASE("safetensors: headers that are no tensor lists are refused") {
  CHECK(contains(problem("[]", 0), "JSON object"));
  CHECK(contains(problem("{", 0), "JSON object"));
  CHECK(contains(problem("{} x", 0), "JSON object"));
  CHECK(contains(problem("", 0), "JSON object"));
  CHECK(contains(problem(R"({"a":1})", 0), "'dtype'"));
  CHECK(contains(problem(R"({"a":{"dtype":1,"shape":[],"data_offsets":[0,0]}})", 0), "'dtype'"));
  CHECK(contains(problem(R"({"__metadata__":[]})", 0), "__metadata__"));
  CHECK(contains(problem(R"({"__metadata__":{"k":1}})", 0), "'k'"));
  CHECK(contains(problem(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                         R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                         0),
                 "'a' twice"));
  CHECK(contains(problem(R"({"a":{"dtype":"U8","dtype":"F32"}})", 0), "'dtype' twice"));
  CHECK(contains(problem(std::string(100000, '['), 0), "nested"));
  CHECK(contains(problem("{\"a\":" + std::string(100000, '['), 0), "nested"));
  CHECK(!problem("{\"\xFF\":{}}", 0).empty());
  CHECK(problem("{}      ", 0).empty());
}

TEST_CASE("safetensors: writing into no folder fails and leaves nothing") {
  const test::TempDir dir;
  test::TensorFile file;
  file.add("a", DType::F32, {1}, {1});
  CHECK_THROWS_AS(file.write(dir.file("none/x.safetensors")), FileError);
  CHECK(std::filesystem::is_empty(dir.path()));
}
