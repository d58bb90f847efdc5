#include "engine/kernel_cache.h"

#include <filesystem>

#include "io/file.h"
#include "kernels/base/error.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/catch.h"
#include "tests/support.h"

namespace squareq::test {
namespace {

namespace fs = std::filesystem;

// A backend that has choices; those of another device start with "other".
class ChoosingOps : public CpuOps {
 public:
  explicit ChoosingOps(std::string choices) : CpuOps(1), choices_(std::move(choices)) {}
  std::string kernel_choices() const override { return choices_; }
  void restore_kernel_choices(std::string_view choices) override {
    if (choices.starts_with("other")) throw FormatError({.where = "choices", .found = std::string(choices)});
    choices_ = choices;
  }

 private:
  std::string choices_;
};

}  // namespace

TEST_CASE("kernel choices are found again in the cache folder") {
  const TempDir folder;
  const std::string cache = folder.file("new/cache");
  ChoosingOps fresh("first");
  load_kernel_choices(fresh, cache);
  CHECK(fresh.kernel_choices() == "first");
  save_kernel_choices(fresh, cache);
  ChoosingOps later("nothing yet");
  load_kernel_choices(later, cache);
  CHECK(later.kernel_choices() == "first");
  save_kernel_choices(ChoosingOps("second"), cache);
  load_kernel_choices(later, cache);
  CHECK(later.kernel_choices() == "second");
}

TEST_CASE("kernel choices of another device are left alone, and replaced when there are new ones") {
  const TempDir folder;
  save_kernel_choices(ChoosingOps("other GPU"), folder.path().string());
  ChoosingOps ops("mine");
  load_kernel_choices(ops, folder.path().string());
  CHECK(ops.kernel_choices() == "mine");
  save_kernel_choices(ops, folder.path().string());
  CHECK(read_text(folder.file("kernel_choices")) == "mine");
}

TEST_CASE("a backend without choices leaves no file") {
  const TempDir folder;
  const std::unique_ptr<Ops> ops = make_cpu_ops(1);
  save_kernel_choices(*ops, folder.path().string());
  CHECK(fs::is_empty(folder.path()));
  CHECK_THROWS_AS(ops->restore_kernel_choices("something"), FormatError);
}

}  // namespace squareq::test
