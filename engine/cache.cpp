#include "engine/cache.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <span>
#include <stdexcept>

#include "engine/identity.h"
#include "io/safetensors.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "squareq cache record";
constexpr const char* kVersion = "2";

std::size_t count_of(const std::vector<std::int64_t>& shape) {
  std::size_t count = 1;
  for (const std::int64_t side : shape) count *= static_cast<std::size_t>(side);
  return count;
}

// Covers names, types, shapes and numbers, in the order of the names.
class RecordSum {
 public:
  void add(const std::string& name, DType dtype, const std::vector<std::int64_t>& shape,
           std::span<const std::byte> data) {
    std::string head = fmt::format("{}({})={} [", name.size(), name, name_of(dtype));
    for (const std::int64_t side : shape) head += fmt::format("{},", side);
    hash_.add(head + "]");
    hash_.add({reinterpret_cast<const char*>(data.data()), data.size()});
  }
  std::string text() { return hash_.hex(); }

 private:
  Sha256 hash_;
};

void expect_metadata(const SafetensorsFile& file, const std::string& name, const std::string& expected) {
  const auto found = file.metadata().find(name);
  if (found == file.metadata().end()) throw FormatError({file.path(), fmt::format("no '{}'", name), "a record", ""});
  if (found->second != expected) {
    throw FormatError({file.path(), fmt::format("another '{}'", name), "the one of this input and program", ""});
  }
}

SafetensorsFile open_record(const std::string& path, const CacheKey& key) {
  SafetensorsFile file(path);
  expect_metadata(file, "format", kFormat);
  expect_metadata(file, "version", kVersion);
  expect_metadata(file, "key", key.text());
  return file;
}

Record read_record(const std::string& path, const CacheKey& key) {
  const SafetensorsFile file = open_record(path, key);
  std::map<std::string, TensorInfo> tensors;
  for (const TensorInfo& info : file.tensors()) tensors.emplace(info.name, info);
  RecordSum sum;
  Record record;
  for (const auto& [name, info] : tensors) {
    sum.add(name, info.dtype, info.shape, file.data(info));
    record[name] = {info.dtype, info.shape, file.read_f32(name)};
  }
  expect_metadata(file, "sha256", sum.text());
  return record;
}

// The result of reading a record, or none if there is no usable one.
template <class Read>
auto attempt(const std::string& path, Read read) -> std::optional<decltype(read())> {
  std::error_code error;
  if (!fs::exists(path, error)) return std::nullopt;
  try {
    return read();
  } catch (const Error& e) {
    spdlog::warn("cache: {}; it is computed again", e.what());
    return std::nullopt;
  }
}

}  // namespace

CacheKey::CacheKey(std::string kind) : kind_(std::move(kind)) { add("kind", kind_); }

CacheKey& CacheKey::add(std::string_view name, std::string_view value) {
  text_ += fmt::format("{}({})={}\n", name, value.size(), value);  // the length keeps line breaks in values harmless
  return *this;
}

CacheKey& CacheKey::add(std::string_view name, std::int64_t value) { return add(name, std::to_string(value)); }

std::string CacheKey::file_name() const {
  return fmt::format("{}-{}.safetensors", kind_, content_hash(text_).substr(0, 32));
}

Cache::Cache(std::string folder) : folder_(std::move(folder)) {
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error || !fs::is_directory(folder_, error)) {
    throw FileError({folder_, error ? error.message() : std::string("no folder"), "a folder that can be written",
                     "set cache_dir to another place"});
  }
}

std::string Cache::path_of(const CacheKey& key) const { return (fs::path(folder_) / key.file_name()).string(); }

bool Cache::contains(const CacheKey& key) const {
  const std::string path = path_of(key);
  return attempt(path, [&] { return open_record(path, key); }).has_value();
}

std::optional<Record> Cache::load(const CacheKey& key) const {
  const std::string path = path_of(key);
  return attempt(path, [&] { return read_record(path, key); });
}

Record Cache::require(const CacheKey& key) const {
  std::optional<Record> record = load(key);
  if (record) return std::move(*record);
  throw FileError({path_of(key), "a cache record that is gone or damaged", "the one written for this run",
                   "start the run again: it is computed anew"});
}

void Cache::store(const CacheKey& key, const Record& record) const {
  const std::string path = path_of(key);
  std::vector<std::vector<std::byte>> payloads;
  std::vector<TensorOut> tensors;
  RecordSum sum;
  for (const auto& [name, array] : record) {
    if (array.values.size() != count_of(array.shape)) throw std::logic_error("Cache::store: shape and values disagree");
    if (!std::all_of(array.values.begin(), array.values.end(), [](float v) { return std::isfinite(v); })) {
      throw NumericError({fmt::format("{}: '{}'", path, name), "NaN or infinity", "finite numbers",
                          "the encoder that computed it gives no usable result"});
    }
    std::vector<std::byte>& payload = payloads.emplace_back(array.values.size() * size_of(array.dtype));
    from_f32(array.values.data(), array.dtype, payload.data(), static_cast<std::int64_t>(array.values.size()));
    sum.add(name, array.dtype, array.shape, payload);
    tensors.push_back({name, array.dtype, array.shape, payload});  // a vector's memory stays when its owner moves
  }
  write_safetensors(path, tensors,
                    {{"format", kFormat}, {"version", kVersion}, {"key", key.text()}, {"sha256", sum.text()}});
}

CacheKey latent_key(const LatentInputs& in) {
  CacheKey key("latent");
  key.add("image", in.image).add("vae", in.vae).add("width", in.width).add("height", in.height).add("mode", in.mode);
  key.add("mirrored", in.mirrored ? 1 : 0).add("alpha", in.alpha ? 1 : 0).add("mask", in.mask);
  key.add("mask_floor", fmt::format("{}", in.mask_floor));
  return key;
}

CacheKey text_key(std::string_view caption, const std::string& t5_identity, const std::string& clip_identity,
                  const std::string& tokenizer_identity, std::int64_t t5_length, std::int64_t clip_length) {
  CacheKey key("text");
  key.add("caption", content_hash(caption)).add("t5", t5_identity).add("clip", clip_identity);
  key.add("tokenizers", tokenizer_identity).add("t5_length", t5_length).add("clip_length", clip_length);
  return key;
}

}  // namespace squareq
