#include "engine/cache.h"

#include <cmath>
#include <functional>

#include "engine/identity.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using squareq::test::contains;
using squareq::test::message_of;
using squareq::test::read_file;
using squareq::test::TempDir;
using squareq::test::write_file;

namespace {

namespace fs = std::filesystem;

Record some_record() {
  Record record;
  record["latent"] = {DType::F32, {2, 3}, {1.0F, -2.5F, 3.0F, 0.0F, 1e-30F, 7.25F}};
  record["mask"] = {DType::BF16, {1, 2}, {1.0F, 0.5F}};
  record["pooled"] = {DType::F16, {}, {0.25F}};
  return record;
}

LatentInputs some_inputs() {
  return {.image = "picture", .vae = "vae", .width = 128, .height = 64, .mode = "mean", .mask = "mask"};
}

CacheKey some_key() { return latent_key(some_inputs()); }

// The key where one input differs.
CacheKey other_key(const std::function<void(LatentInputs&)>& change) {
  LatentInputs inputs = some_inputs();
  change(inputs);
  return latent_key(inputs);
}

bool equal(const Record& a, const Record& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.first == y.first && x.second.dtype == y.second.dtype && x.second.shape == y.second.shape &&
           x.second.values == y.second.values;
  });
}

std::size_t files_in(const fs::path& folder) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

}  // namespace

TEST_CASE("cache: what is stored is found again") {
  const TempDir folder;
  const Cache cache(folder.file("deep/er"));
  CHECK_FALSE(cache.load(some_key()));
  CHECK_FALSE(cache.contains(some_key()));
  cache.store(some_key(), some_record());
  CHECK(cache.contains(some_key()));
  const auto found = Cache(folder.file("deep/er")).load(some_key());
  REQUIRE(found);
  CHECK(equal(*found, some_record()));
  CHECK(files_in(folder.path() / "deep" / "er") == 1);

  SECTION("and replaced") {
    Record other = some_record();
    other["latent"].values[0] = 5.0F;
    cache.store(some_key(), other);
    CHECK(equal(*cache.load(some_key()), other));
    CHECK(files_in(folder.path() / "deep" / "er") == 1);
  }
}

TEST_CASE("cache: everything a record depends on is in its key") {
  const std::vector<CacheKey> keys = {
      some_key(),
      other_key([](LatentInputs& in) { in.image = "picture2"; }),
      other_key([](LatentInputs& in) { in.vae = "vae2"; }),
      other_key([](LatentInputs& in) { std::swap(in.width, in.height); }),
      other_key([](LatentInputs& in) { in.mode = "sample"; }),
      other_key([](LatentInputs& in) { in.mirrored = true; }),
      other_key([](LatentInputs& in) { in.alpha = true; }),
      other_key([](LatentInputs& in) { in.mask.clear(); }),
      other_key([](LatentInputs& in) { in.mask_floor = 0.5; }),
      text_key("a cat", "t5", "clip", "tok", 512, 77),
      text_key("a cat ", "t5", "clip", "tok", 512, 77),
      text_key("a cat", "t5b", "clip", "tok", 512, 77),
      text_key("a cat", "t5", "clipb", "tok", 512, 77),
      text_key("a cat", "t5", "clip", "tokb", 512, 77),
      text_key("a cat", "t5", "clip", "tok", 256, 77),
      text_key("a cat", "t5", "clip", "tok", 512, 76),
  };
  for (std::size_t i = 0; i < keys.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      CHECK(keys[i].text() != keys[j].text());
      CHECK(keys[i].file_name() != keys[j].file_name());
    }
  }
  CHECK(keys[0].file_name() == some_key().file_name());
  CHECK(CacheKey("a").add("x", "1\ny(1)=2").text() != CacheKey("a").add("x", "1").add("y", "2").text());
}

TEST_CASE("cache: a damaged record is never used") {
  const TempDir folder;
  const Cache cache(folder.path().string());
  cache.store(some_key(), some_record());
  const std::string path = folder.file(some_key().file_name());
  const std::string whole = read_file(path);

  SECTION("cut off anywhere") {
    for (std::size_t length = 0; length < whole.size(); length += 1 + length / 16) {
      write_file(path, whole.substr(0, length));
      INFO(length);
      CHECK_FALSE(cache.load(some_key()));
    }
  }
  SECTION("with a changed bit anywhere") {
    for (std::size_t i = 0; i < whole.size(); ++i) {
      std::string changed = whole;
      changed[i] = static_cast<char>(changed[i] ^ (1 << (i % 8)));
      write_file(path, changed);
      const auto found = cache.load(some_key());
      INFO("byte " << i);
      CHECK((!found || equal(*found, some_record())));  // white space of the header may change without harm
    }
  }
  SECTION("garbage, or a folder in its place") {
    write_file(path, std::string(1000, '\xAB'));
    CHECK_FALSE(cache.load(some_key()));
    fs::remove(path);
    fs::create_directory(path);
    CHECK_FALSE(cache.load(some_key()));
  }
  SECTION("and can be written anew") {
    write_file(path, whole.substr(0, whole.size() / 2));
    CHECK_FALSE(cache.load(some_key()));
    cache.store(some_key(), some_record());
    CHECK(equal(*cache.load(some_key()), some_record()));
  }
}

TEST_CASE("cache: a record of another key is not served") {
  const TempDir folder;
  const Cache cache(folder.path().string());
  cache.store(some_key(), some_record());
  const CacheKey other = other_key([](LatentInputs& in) { in.mode = "sample"; });
  fs::copy_file(folder.file(some_key().file_name()), folder.file(other.file_name()));
  CHECK_FALSE(cache.load(other));
}

TEST_CASE("cache: an interrupted write is not a record") {
  const TempDir folder;
  const Cache cache(folder.path().string());
  cache.store(some_key(), some_record());
  const std::string path = folder.file(some_key().file_name());
  fs::rename(path, path + ".tmp-1234");
  CHECK_FALSE(cache.load(some_key()));
}

TEST_CASE("cache: what cannot be stored") {
  const TempDir folder;
  const Cache cache(folder.path().string());
  Record record = some_record();
  record["latent"].values[2] = NAN;
  CHECK(contains(message_of<NumericError>([&] { cache.store(some_key(), record); }), "'latent': found NaN"));
  record["latent"].values.pop_back();
  CHECK_THROWS_AS(cache.store(some_key(), record), std::logic_error);
  CHECK(files_in(folder.path()) == 0);
  write_file(folder.file("file"), "");
  CHECK(contains(message_of<FileError>([&] { Cache{folder.file("file")}; }), folder.file("file")));
  CHECK(contains(message_of<FileError>([&] { Cache{folder.file("file/below")}; }), "set cache_dir"));
}

TEST_CASE("identity: SHA-256 of known texts") {
  CHECK(content_hash("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(content_hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const TempDir folder;
  write_file(folder.file("abc"), "abc");
  CHECK(file_hash(folder.file("abc")) == content_hash("abc"));
  CHECK(contains(message_of<FileError>([&] { file_hash(folder.file("none")); }), folder.file("none")));
  CHECK(contains(message_of<FileError>([&] { model_identity(folder.file("none")); }), folder.file("none")));
}

TEST_CASE("identity: model files, small and large") {
  const TempDir folder;
  const std::string path = folder.file("model.safetensors");
  const auto identity = [&] { return model_identity(path); };
  write_file(path, "small");
  const std::string small = identity();
  CHECK(small == identity());
  write_file(path, "smalL");
  CHECK(identity() != small);

  write_file(path, "");
  constexpr std::uint64_t kSize = (std::uint64_t{100} << 20) + 12345;
  fs::resize_file(path, kSize);  // sparse
  const std::string large = identity();
  CHECK(large == identity());
  const auto changed_at = [&](std::uint64_t offset) {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(offset));
    file.put('x');
    file.flush();
    const std::string result = identity();
    file.seekp(static_cast<std::streamoff>(offset));
    file.put('\0');
    return result != large;
  };
  CHECK(changed_at(0));
  CHECK(changed_at((4 << 20) - 1));
  CHECK(changed_at(4 << 20));
  CHECK(changed_at(kSize - 1));
  CHECK(identity() == large);
  fs::resize_file(path, kSize + 1);
  CHECK(identity() != large);
}

TEST_CASE("identity: folders") {
  const TempDir folder;
  fs::create_directory(folder.path() / "part");
  write_file(folder.file("config.json"), "{}");
  write_file(folder.file("part/a"), "1");
  const auto identity = [&] { return model_identity(folder.path().string()); };
  const std::string before = identity();
  write_file(folder.file(".hidden"), "x");
  fs::create_directory_symlink(folder.path(), folder.path() / "circle");
  fs::create_symlink("loop", folder.path() / "loop");
  CHECK(identity() == before);
  write_file(folder.file("part/a"), "2");
  CHECK(identity() != before);
  write_file(folder.file("part/a"), "1");
  CHECK(identity() == before);
  fs::rename(folder.path() / "part" / "a", folder.path() / "part" / "b");
  CHECK(identity() != before);
}
