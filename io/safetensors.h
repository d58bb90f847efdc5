// The safetensors file format: u64 header length n (little endian), n bytes of JSON, tensor data.
// https://github.com/huggingface/safetensors
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "io/mapped_file.h"
#include "kernels/base/dtype.h"

namespace squareq {

struct TensorInfo {
  std::string name;
  DType dtype = DType::F32;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;    // offsets in the file
  std::uint64_t end = 0;      // one past the last byte
  std::string unknown_dtype;  // spelling of a dtype that is not one of DType; `dtype` then means nothing

  std::int64_t count() const;  // elements
};

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // in the order of their data
  std::map<std::string, std::string> metadata;
  std::uint64_t data_begin = 0;
};

// Reads and checks the header of a file given as bytes: length at most 100 MB and inside the file, valid JSON without
// repeated names, sizes that match dtype and shape, data inside the file and without overlap. `path` is for messages
// only. Throws FormatError. Bytes at offsets of tensors are not touched.
SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& path);

// "[3072, 64]", as messages spell shapes.
std::string shape_text(const std::vector<std::int64_t>& shape);

class SafetensorsFile {
 public:
  // Throws FileError and FormatError.
  explicit SafetensorsFile(std::string path);

  const std::string& path() const { return file_.path(); }
  void check_whole() const { file_.check_whole(); }  // see MappedFile
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  std::uint64_t data_begin() const { return header_.data_begin; }

  const TensorInfo* find(const std::string& name) const;  // nullptr if there is none
  // Throws FormatError naming file and tensor if it is missing or of an unknown dtype.
  const TensorInfo& get(const std::string& name) const;

  // The bytes of a tensor, of any alignment. Throws FormatError if its dtype is unknown.
  std::span<const std::byte> data(const TensorInfo& tensor) const;

  // Values of a tensor of any dtype as float32. Throws FormatError if it is missing or not of the expected shape.
  std::vector<float> read_f32(const std::string& name) const;
  std::vector<float> read_f32(const std::string& name, const std::vector<std::int64_t>& expected_shape) const;

 private:
  MappedFile file_;
  SafetensorsHeader header_;
  std::unordered_map<std::string, std::size_t> index_;
};

struct TensorOut {
  std::string name;
  DType dtype = DType::F32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;
};

// The order in which tensors are written: larger elements first, so that all are aligned to their size; then by name.
void sort_for_writing(std::vector<TensorOut>& tensors);

// Length field and JSON, for tensors whose data follows without gaps in the given order; padded with spaces so that
// data starts at a multiple of `alignment`.
std::string safetensors_header(const std::vector<TensorOut>& tensors,
                               const std::map<std::string, std::string>& metadata, std::size_t alignment = 8);

// Writes a file atomically; the same tensors and metadata give the same bytes, whatever their order. Throws FileError.
void write_safetensors(const std::string& path, std::vector<TensorOut> tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace squareq
