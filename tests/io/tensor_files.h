// Builds safetensors files for tests, right ones and wrong ones.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint.h"
#include "io/safetensors.h"
#include "tests/support.h"

namespace squareq::test {

// The bytes of a file with any header text and any data.
inline std::string raw_safetensors(std::string_view header, std::string_view data) {
  std::string file(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<char>((header.size() >> (8 * i)) & 0xFFU);
  file += header;
  file += data;
  return file;
}

// Tensors with data of their own.
class TensorFile {
 public:
  void add(const std::string& name, DType dtype, std::vector<std::int64_t> shape, const std::vector<float>& values) {
    std::vector<std::byte>& data = data_.emplace_back(values.size() * size_of(dtype));
    if (dtype == DType::F8_E4M3) {
      for (std::size_t i = 0; i < values.size(); ++i) data[i] = static_cast<std::byte>(f32_to_e4m3(values[i]));
    } else {
      from_f32(values.data(), dtype, data.data(), static_cast<std::int64_t>(values.size()));
    }
    erase(name);
    tensors_.push_back({name, dtype, std::move(shape), data});
  }
  void add_bytes(const std::string& name, DType dtype, std::vector<std::int64_t> shape, std::string_view bytes) {
    const auto* begin = reinterpret_cast<const std::byte*>(bytes.data());
    std::vector<std::byte>& data = data_.emplace_back(begin, begin + bytes.size());
    erase(name);
    tensors_.push_back({name, dtype, std::move(shape), data});
  }
  void erase(const std::string& name) {
    std::erase_if(tensors_, [&](const TensorOut& tensor) { return tensor.name == name; });
  }
  std::map<std::string, std::string>& metadata() { return metadata_; }
  void write(const std::string& path) const { write_safetensors(path, tensors_, metadata_); }

 private:
  std::deque<std::vector<std::byte>> data_;
  std::vector<TensorOut> tensors_;
  std::map<std::string, std::string> metadata_;
};

// All tensors of a file under other names, as F32, with its metadata.
inline TensorFile renamed(const std::string& path, const std::function<std::string(const std::string&)>& rename) {
  const SafetensorsFile file(path);
  TensorFile copy;
  for (const TensorInfo& tensor : file.tensors()) {
    copy.add(rename(tensor.name), DType::F32, tensor.shape, file.read_f32(tensor.name));
  }
  copy.metadata() = file.metadata();
  return copy;
}

inline std::vector<float> rows_of(const std::vector<float>& values, std::int64_t all,
                                  const std::vector<RowSpan>& spans) {
  const std::size_t columns = values.size() / static_cast<std::size_t>(all);
  std::vector<float> taken;
  for (const RowSpan& span : spans) {
    const auto begin = values.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(span.begin) * columns);
    taken.insert(taken.end(), begin,
                 begin + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(span.rows) * columns));
  }
  return taken;
}

// A transformer under BFL names as a diffusers file would hold it.
inline TensorFile in_diffusers_naming(const std::string& path) {
  const Checkpoint bfl = Checkpoint::open(path, Model::kTransformer);
  const FluxShape shape = flux_shape(bfl);
  TensorFile copy;
  for (const NamedShape& tensor : flux_tensors(shape)) {
    const std::vector<float> values = bfl.read_f32(tensor.name);
    for (const DiffusersTensor& part : names_in_diffusers(tensor, shape)) {
      copy.add(part.name, DType::F32, part.shape, rows_of(values, tensor.shape[0], part.rows));
    }
  }
  copy.metadata() = SafetensorsFile(path).metadata();
  return copy;
}

}  // namespace squareq::test
