#include "kernels/ops.h"

#include <stdexcept>

#include "kernels/base/error.h"

namespace squareq {

View Ops::prepared_form(const Weight&) const { return {}; }

void Ops::prepare(const Weight&, View) { throw std::logic_error("Ops::prepare: weights are read as they are stored"); }

void Ops::restore_kernel_choices(std::string_view choices) {
  if (choices.empty()) return;
  throw FormatError({.where = "kernel choices of a saved state",
                     .found = "those of another device or build",
                     .expected = "none: this backend chooses by shape alone",
                     .advice = "resume on the device that the run was started on"});
}

}  // namespace squareq
