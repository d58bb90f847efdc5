#include "kernels/ops.h"

#include "kernels/base/error.h"

namespace squareq {

void Ops::restore_kernel_choices(std::string_view choices) {
  if (choices.empty()) return;
  throw FormatError({.where = "kernel choices of a saved state",
                     .found = "those of another device or build",
                     .expected = "none: this backend chooses by shape alone",
                     .advice = "resume on the device that the run was started on"});
}

}  // namespace squareq
