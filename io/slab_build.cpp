#include "io/slab_build.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include "io/checkpoint.h"
#include "io/mapped_file.h"
#include "io/slab_header.h"
#include "io/slab_layout.h"
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
    checkpoint_.read_f32(tensor, row_begin, rows, out);
  }

 private:
  const Checkpoint& checkpoint_;
};

}  // namespace

void build_slab(const Checkpoint& checkpoint, const SlabShape& shape, const std::string& path,
                const SlabOptions& options) {
  check_shape(shape, checkpoint.path());
  checkpoint.check(slab_tensors(shape));
  write_slab(CheckpointSource(checkpoint), shape, path, options);
}

}  // namespace squareq
