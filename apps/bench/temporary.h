// Files that exist only while a command runs.
#pragma once

#include <filesystem>
#include <string>

namespace squareq::bench {

// A file of the given name in a fresh folder under the system's temporary folder; both go away with the object.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& name);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

}  // namespace squareq::bench
