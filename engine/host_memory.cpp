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
constexpr std::size_t kReserve = std::size_t{2} << 30U;  // for everything but the page cache

// The value in bytes of a line "NAME:  123 kB".
std::size_t kilobytes(const char* file, const std::string& name, std::size_t absent) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(name + ":")) return std::stoull(line.substr(name.size() + 1)) * 1024;
  }
  return absent;
}

// Of a control group and those above it.
std::size_t smallest_limit(const std::string& hierarchy, fs::path group, const char* name) {
  std::size_t limit = kUnlimited;
  for (;; group = group.parent_path()) {
    std::ifstream file(hierarchy + group.string() + "/" + name);
    std::size_t value = 0;
    if (file >> value) limit = std::min(limit, value);  // "max" is no number
    if (group == group.parent_path()) return limit;
  }
}

// Of the groups of this process, which /proc/self/cgroup lists as "ID:CONTROLLERS:GROUP": version 2 has no names of
// controllers, version 1 a hierarchy for each. Kernels and containers without give no limit.
std::size_t control_group_limit() {
  std::ifstream groups("/proc/self/cgroup");
  std::size_t limit = kUnlimited;
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string group = line.substr(second + 1);
    if (controllers.empty()) limit = std::min(limit, smallest_limit("/sys/fs/cgroup", group, "memory.max"));
    if (controllers == "memory") {
      limit = std::min(limit, smallest_limit("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes"));
    }
  }
  return limit;
}

}  // namespace

std::size_t available_page_cache() {
  const std::size_t available = std::min(kilobytes("/proc/meminfo", "MemAvailable", kUnlimited), control_group_limit());
  return available - std::min(available, kReserve);
}

std::size_t anonymous_host_memory() { return kilobytes("/proc/self/status", "RssAnon", 0); }

}  // namespace squareq
