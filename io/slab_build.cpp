#include "io/slab_build.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include "io/checkpoint.h"
#include "io/mapped_file.h"
#include "io/slab_header.h"
#include "io/slab_writer.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

class CheckpointSource : public WeightSource {
 public:
  explicit CheckpointSource(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  std::string key() const override {
    std::string key;
    for (const std::string& path : checkpoint_.files()) {
      const MappedFile file(path);
      struct stat status {};
      if (stat(path.c_str(), &status) != 0) throw FileError({path, "no access", "a readable file"});
      const std::uint64_t header = parse_safetensors(file.bytes(), path).data_begin;
      key += fmt::format("{} {} {}.{:09} {}\n", path, file.bytes().size(), status.st_mtim.tv_sec,
                         status.st_mtim.tv_nsec, checksum_of(file.bytes().first(header)));
    }
    return key;
  }

  DType dtype(const std::string& tensor) const override { return checkpoint_.source_dtype(tensor); }

  void read(const std::string& tensor, std::int64_t row_begin, std::int64_t rows, float* out) const override {
    try {
      checkpoint_.read_f32(tensor, row_begin, rows, out);
    } catch (const NumericError&) {
      for (std::int64_t row = row_begin; row < row_begin + rows; ++row) check_row(tensor, row, out);
      throw;
    }
  }

 private:
  void check_row(const std::string& tensor, std::int64_t row, float* scratch) const {
    try {
      checkpoint_.read_f32(tensor, row, 1, scratch);
    } catch (const NumericError& error) {
      Problem problem = error.problem();
      problem.where += fmt::format(", row {}", row);
      throw NumericError(problem);
    }
  }

  const Checkpoint& checkpoint_;
};

void check_tensors(const Checkpoint& checkpoint, const SlabShape& shape) {
  for (const NamedShape& tensor : slab_tensors(shape)) {
    const std::vector<std::int64_t> found = checkpoint.shape(tensor.name);
    if (found == tensor.shape) continue;
    throw FormatError({.where = checkpoint.path() + ": tensor '" + tensor.name + "'",
                       .found = "shape " + shape_text(found),
                       .expected = "shape " + shape_text(tensor.shape),
                       .advice = "the checkpoint does not fit its configuration"});
  }
}

}  // namespace

void build_slab(const Checkpoint& checkpoint, const SlabShape& shape, const std::string& path,
                const SlabOptions& options) {
  check_shape(shape, checkpoint.path());
  check_tensors(checkpoint, shape);
  write_slab(CheckpointSource(checkpoint), shape, path, options);
}

}  // namespace squareq
