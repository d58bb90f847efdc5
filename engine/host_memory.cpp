#include "engine/host_memory.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

namespace squareq {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t kUnlimited = std::numeric_limits<std::size_t>::max();

// The value in bytes of a line "NAME:  123 kB".
std::size_t kilobytes(const char* file, const std::string& name, std::size_t absent) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(name + ":")) return std::stoull(line.substr(name.size() + 1)) * 1024;
  }
  return absent;
}

// Of the control group (version 2) of this process and those above it. Kernels and containers without give no limit.
std::size_t control_group_limit() {
  std::ifstream groups("/proc/self/cgroup");
  std::size_t limit = kUnlimited;
  for (std::string line; std::getline(groups, line);) {
    if (!line.starts_with("0::/")) continue;
    for (fs::path group = line.substr(3);; group = group.parent_path()) {
      std::ifstream file("/sys/fs/cgroup" + group.string() + "/memory.max");
      std::size_t value = 0;
      if (file >> value) limit = std::min(limit, value);  // "max" is no number
      if (group == group.parent_path()) break;
    }
  }
  return limit;
}

}  // namespace

std::size_t available_host_memory() {
  return std::min(kilobytes("/proc/meminfo", "MemAvailable", kUnlimited), control_group_limit());
}

std::size_t anonymous_host_memory() { return kilobytes("/proc/self/status", "RssAnon", 0); }

}  // namespace squareq
