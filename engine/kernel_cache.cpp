#include "engine/kernel_cache.h"

#include <spdlog/spdlog.h>

#include <filesystem>

#include "io/file.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

namespace fs = std::filesystem;

std::string path_in(const std::string& folder) { return (fs::path(folder) / "kernel_choices").string(); }

}  // namespace

void load_kernel_choices(Ops& ops, const std::string& folder) {
  const std::string path = path_in(folder);
  if (!fs::exists(path)) return;
  try {
    ops.restore_kernel_choices(read_text(path));
  } catch (const FormatError& e) {
    spdlog::info("{}: kernels are chosen anew ({})", path, e.what());
  }
}

void save_kernel_choices(const Ops& ops, const std::string& folder) {
  const std::string choices = ops.kernel_choices();
  const std::string path = path_in(folder);
  if (choices.empty() || (fs::exists(path) && read_text(path) == choices)) return;
  fs::create_directories(folder);
  AtomicFile file(path);
  file.write(choices);
  file.commit();
}

}  // namespace squareq
