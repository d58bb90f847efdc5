// The memory of this machine.
#pragma once

#include <cstddef>

namespace squareq {

// Bytes that the page cache can hold for this process: what the system has available, or less where a control group
// sets a limit, but for a reserve for everything else.
std::size_t available_page_cache();

// Anonymous memory of this process that is in RAM, in bytes: not the page cache, not mapped files.
std::size_t anonymous_host_memory();

}  // namespace squareq
