// What the driver says of the memory of a GPU. Not the runtime's cudaMemGetInfo, which cannot be asked before this
// process has a context of its own, and so cannot tell what other processes use.
#pragma once

#include <cstddef>
#include <optional>

namespace squareq::cuda {

// Bytes that processes use on GPU 0, from the management library; nothing where that is missing.
std::optional<std::size_t> driver_memory_in_use();

}  // namespace squareq::cuda
