// What Ops::tune chose, kept in a file of the cache folder: the next run starts sooner, and chooses the same.
#pragma once

#include <string>

#include "kernels/ops.h"

namespace squareq {

// Before anything is rehearsed. Choices of another GPU, driver or library are left alone.
void load_kernel_choices(Ops& ops, const std::string& folder);
// Throws FileError.
void save_kernel_choices(const Ops& ops, const std::string& folder);

}  // namespace squareq
