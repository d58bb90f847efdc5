#include "apps/bench/temporary.h"

#include <cstdlib>

#include "kernels/base/error.h"

namespace squareq::bench {
namespace fs = std::filesystem;

TemporaryFile::TemporaryFile(const std::string& name) {
  std::string folder = (fs::temp_directory_path() / "squareq-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) {
    throw FileError({.where = folder,
                     .found = "a folder that cannot be made",
                     .expected = "a writable temporary folder",
                     .advice = "set TMPDIR to one"});
  }
  path_ = fs::path(folder) / name;
}

TemporaryFile::~TemporaryFile() {
  std::error_code ignored;
  fs::remove_all(path_.parent_path(), ignored);
}

}  // namespace squareq::bench
