// The memory of this machine.
#pragma once

#include <cstddef>

namespace squareq {

// Bytes that this process could use, page cache that can be dropped included: what the system has available, or less
// where a control group sets a limit.
std::size_t available_host_memory();

// Anonymous memory of this process that is in RAM, in bytes: not the page cache, not mapped files.
std::size_t anonymous_host_memory();

}  // namespace squareq
