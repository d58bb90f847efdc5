#include "io/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "io/file.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeader = 100'000'000;
constexpr const char* kMetadata = "__metadata__";

std::string where(const std::string& path, const std::string& tensor) {
  return fmt::format("{}: tensor '{}'", path, tensor);
}

std::string_view header_text(std::span<const std::byte> file, const std::string& path) {
  if (file.size() < kLengthBytes) {
    throw FormatError({path, fmt::format("a file of {} bytes", file.size()), "a safetensors file", ""});
  }
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i) length |= std::to_integer<std::uint64_t>(file[i]) << (8 * i);
  if (length > kMaxHeader) {
    throw FormatError({path + ": header length", fmt::format("{} bytes", length), fmt::format("at most {}", kMaxHeader),
                       "is it a safetensors file?"});
  }
  if (length > file.size() - kLengthBytes) {
    throw FormatError({path + ": header length", fmt::format("{} bytes", length),
                       fmt::format("at most the {} bytes that follow in the file", file.size() - kLengthBytes),
                       "the file is truncated or no safetensors file"});
  }
  return {reinterpret_cast<const char*>(file.data()) + kLengthBytes, static_cast<std::size_t>(length)};
}

// The parser callback refuses what a DOM would hide or pay for: repeated names, and deep nesting.
Json parse_json(std::string_view text, const std::string& path) {
  constexpr int kMaxDepth = 4;
  std::vector<std::set<std::string>> names(kMaxDepth + 1);
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth >= kMaxDepth) throw FormatError({path + ": header", "deeply nested JSON", "tensor entries", ""});
    const auto level = static_cast<std::size_t>(depth);
    if (event == Json::parse_event_t::object_start) names[level + 1].clear();
    if (event == Json::parse_event_t::key && !names[level].insert(parsed.get<std::string>()).second) {
      throw FormatError({path + ": header", fmt::format("'{}' twice", parsed.get<std::string>()), "unique names", ""});
    }
    return true;
  };
  try {
    Json json = Json::parse(text.begin(), text.end(), check);
    if (json.is_object()) return json;
  } catch (const Json::exception& error) {
    throw FormatError({path + ": header", error.what(), "a JSON object", "the file is damaged"});
  }
  throw FormatError({path + ": header", "JSON that is no object", "a JSON object", ""});
}

std::uint64_t unsigned_number(const Json& json, const std::string& path, const std::string& tensor, const char* what) {
  if (json.is_number_unsigned()) return json.get<std::uint64_t>();
  throw FormatError({where(path, tensor),
                     fmt::format("{} {}", what, json.dump(-1, ' ', false, Json::error_handler_t::replace)),
                     "whole numbers that are not negative", ""});
}

const Json& field(const Json& entry, const char* name, bool (Json::*is_right)() const noexcept, const std::string& path,
                  const std::string& tensor) {
  if (entry.is_object()) {
    const auto found = entry.find(name);
    if (found != entry.end() && ((*found).*is_right)()) return *found;
  }
  throw FormatError({where(path, tensor), fmt::format("no valid '{}'", name), "dtype, shape and data_offsets", ""});
}

std::optional<std::uint64_t> product(std::uint64_t a, std::uint64_t b) {
  std::uint64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) return std::nullopt;
  return result;
}

void check_size(const TensorInfo& tensor, const std::string& path) {
  std::optional<std::uint64_t> bytes = size_of(tensor.dtype);
  for (const std::int64_t side : tensor.shape) {
    if (bytes) bytes = product(*bytes, static_cast<std::uint64_t>(side));
  }
  if (!bytes || *bytes != tensor.end - tensor.begin) {
    throw FormatError({where(path, tensor.name), fmt::format("{} bytes of data", tensor.end - tensor.begin),
                       fmt::format("{} for {} {}", bytes ? fmt::format("{} bytes", *bytes) : "more than 2^64 bytes",
                                   name_of(tensor.dtype), shape_text(tensor.shape)),
                       ""});
  }
}

TensorInfo parse_tensor(const std::string& name, const Json& entry, std::uint64_t data_begin, std::uint64_t data_size,
                        const std::string& path) {
  TensorInfo tensor{.name = name};
  const auto spelled = field(entry, "dtype", &Json::is_string, path, name).get<std::string>();
  for (const Json& side : field(entry, "shape", &Json::is_array, path, name)) {
    const std::uint64_t value = unsigned_number(side, path, name, "shape with");
    if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      throw FormatError({where(path, name), fmt::format("a side of {}", value), "less than 2^63", ""});
    }
    tensor.shape.push_back(static_cast<std::int64_t>(value));
  }
  const Json& offsets = field(entry, "data_offsets", &Json::is_array, path, name);
  if (offsets.size() != 2) throw FormatError({where(path, name), "bad data_offsets", "[begin, end]", ""});
  const std::uint64_t begin = unsigned_number(offsets[0], path, name, "data_offsets with");
  const std::uint64_t end = unsigned_number(offsets[1], path, name, "data_offsets with");
  if (begin > end || end > data_size) {
    throw FormatError({where(path, name), fmt::format("data_offsets [{}, {}]", begin, end),
                       fmt::format("offsets within the {} bytes of data in the file", data_size),
                       "the file is truncated or damaged"});
  }
  tensor.begin = data_begin + begin;
  tensor.end = data_begin + end;
  if (const std::optional<DType> dtype = dtype_from_name(spelled)) {
    tensor.dtype = *dtype;
    check_size(tensor, path);
  } else {
    tensor.unknown_dtype = spelled.empty() ? "(empty)" : spelled;
  }
  return tensor;
}

void check_overlap(const std::vector<TensorInfo>& tensors, const std::string& path) {
  const TensorInfo* last = nullptr;  // with data
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin == tensor.end) continue;
    if (last != nullptr && tensor.begin < last->end) {
      throw FormatError({where(path, tensor.name), fmt::format("data that overlaps that of '{}'", last->name),
                         "data of its own", "the file is damaged"});
    }
    last = &tensor;
  }
}

}  // namespace

std::int64_t TensorInfo::count() const {
  std::uint64_t n = 1;  // unsigned: the shape of a tensor of unknown dtype is not checked against any size
  for (const std::int64_t side : shape) n *= static_cast<std::uint64_t>(side);
  return static_cast<std::int64_t>(n);
}

std::string shape_text(const std::vector<std::int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& path) {
  const std::string_view text = header_text(file, path);
  const Json json = parse_json(text, path);
  SafetensorsHeader header;
  header.data_begin = kLengthBytes + text.size();
  const std::uint64_t data_size = file.size() - header.data_begin;
  for (const auto& [name, entry] : json.items()) {
    if (name != kMetadata) {
      header.tensors.push_back(parse_tensor(name, entry, header.data_begin, data_size, path));
      continue;
    }
    if (!entry.is_object()) throw FormatError({path + ": __metadata__", "no object", "strings by name", ""});
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string()) {
        throw FormatError({fmt::format("{}: __metadata__ '{}'", path, key), value.type_name(), "a string", ""});
      }
      header.metadata[key] = value.get<std::string>();
    }
  }
  std::stable_sort(header.tensors.begin(), header.tensors.end(),
                   [](const TensorInfo& a, const TensorInfo& b) { return a.begin < b.begin; });
  check_overlap(header.tensors, path);
  return header;
}

SafetensorsFile::SafetensorsFile(std::string path)
    : file_(std::move(path)), header_(parse_safetensors(file_.bytes(), file_.path())) {
  for (std::size_t i = 0; i < header_.tensors.size(); ++i) index_.emplace(header_.tensors[i].name, i);
}

const TensorInfo* SafetensorsFile::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &header_.tensors[found->second];
}

const TensorInfo& SafetensorsFile::get(const std::string& name) const {
  const TensorInfo* tensor = find(name);
  if (tensor == nullptr) throw FormatError({where(path(), name), "no such tensor", "", ""});
  data(*tensor);
  return *tensor;
}

std::span<const std::byte> SafetensorsFile::data(const TensorInfo& tensor) const {
  if (!tensor.unknown_dtype.empty()) {
    throw FormatError({where(path(), tensor.name), fmt::format("dtype {}", tensor.unknown_dtype),
                       "F32, F16, BF16, F8_E4M3 or another known dtype", ""});
  }
  return file_.bytes().subspan(tensor.begin, tensor.end - tensor.begin);
}

std::vector<float> SafetensorsFile::read_f32(const std::string& name) const {
  const TensorInfo& tensor = get(name);
  std::vector<float> values(static_cast<std::size_t>(tensor.count()));
  to_f32(data(tensor).data(), tensor.dtype, values.data(), tensor.count());
  return values;
}

std::vector<float> SafetensorsFile::read_f32(const std::string& name,
                                             const std::vector<std::int64_t>& expected_shape) const {
  const TensorInfo& tensor = get(name);
  if (tensor.shape != expected_shape) {
    throw FormatError({where(path(), name), "shape " + shape_text(tensor.shape), shape_text(expected_shape), ""});
  }
  return read_f32(name);
}

void sort_for_writing(std::vector<TensorOut>& tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorOut& a, const TensorOut& b) {
    const std::size_t size_a = size_of(a.dtype);
    const std::size_t size_b = size_of(b.dtype);
    return size_a != size_b ? size_a > size_b : a.name < b.name;
  });
}

std::string safetensors_header(const std::vector<TensorOut>& tensors,
                               const std::map<std::string, std::string>& metadata, std::size_t alignment) {
  std::string text = "{";
  const auto add = [&](const std::string& name, const nlohmann::ordered_json& value) {
    const auto print = [](const nlohmann::ordered_json& json) {  // bytes that are no UTF-8 are replaced, not refused
      return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
    };
    if (text.size() > 1) text += ',';
    text += print(name) + ':' + print(value);
  };
  if (!metadata.empty()) add(kMetadata, metadata);
  std::uint64_t offset = 0;
  for (const TensorOut& tensor : tensors) {
    const std::uint64_t end = offset + tensor.data.size();
    add(tensor.name, {{"dtype", name_of(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}});
    offset = end;
  }
  text += '}';
  const std::size_t padded = (kLengthBytes + text.size() + alignment - 1) / alignment * alignment;
  text.resize(padded - kLengthBytes, ' ');
  std::string length(kLengthBytes, '\0');
  for (std::size_t i = 0; i < kLengthBytes; ++i) length[i] = static_cast<char>((text.size() >> (8 * i)) & 0xFFU);
  return length + text;
}

void write_safetensors(const std::string& path, std::vector<TensorOut> tensors,
                       const std::map<std::string, std::string>& metadata) {
  sort_for_writing(tensors);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const TensorOut& t = tensors[i];
    std::uint64_t bytes = size_of(t.dtype);
    for (const std::int64_t side : t.shape) bytes *= static_cast<std::uint64_t>(side);
    if (bytes != t.data.size()) throw std::logic_error("write_safetensors: shape and data of " + t.name + " disagree");
  }
  const std::string header = safetensors_header(tensors, metadata);
  AtomicFile file(path);
  file.write(header);
  for (const TensorOut& tensor : tensors) file.write(tensor.data);
  file.commit();
}

}  // namespace squareq
