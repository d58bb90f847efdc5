#include "engine/calibration.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/identity.h"
#include "io/file.h"

namespace squareq {
namespace fs = std::filesystem;
namespace {

// Everything that rates depend on, as text.
std::string key_of(const Device& device, const Slab& slab, const FluxRun& run) {
  std::string key =
      fmt::format("{}\n{}\n{}\n{}\n", file_hash("/proc/self/exe"), device.identity(), slab_identity(slab), run.batch);
  for (const Sequence& sequence : run.sequences) key += fmt::format("{} ", sequence.total());
  for (const LoraTarget& target : run.lora) key += fmt::format("\n{} {}", target.linear, target.rank);
  return content_hash(key);
}

// {} if there is none or it is damaged.
std::optional<DeviceRates> stored_rates(const std::string& path, const std::string& device) {
  if (!fs::exists(path)) return {};
  const nlohmann::json json = nlohmann::json::parse(read_text(path), nullptr, false);
  try {
    DeviceRates rates{
        .name = device,
        .memory = json.at("memory").get<std::size_t>(),
        .context = json.at("context").get<std::size_t>(),
        .blocks = {json.at("forward").get<double>(), json.at("backward").get<double>()},
        .prepared = {json.at("prepared_forward").get<double>(), json.at("prepared_backward").get<double>()},
        .copies = json.at("copies").get<double>(),
        .scratch = json.at("scratch").get<std::size_t>()};
    const auto& [forward, backward] = rates.blocks;
    const auto& [prepared_forward, prepared_backward] = rates.prepared;
    if (std::min({forward, backward, prepared_forward, prepared_backward, rates.copies}) > 0.0) return rates;
  } catch (const nlohmann::json::exception&) {
  }
  spdlog::info("{}: not rates of a device; measured again", path);
  return {};
}

}  // namespace

DeviceRates calibrated_rates(Device& device, const Slab& slab, const FluxRun& run, const std::string& folder) {
  const std::string name = key_of(device, slab, run).substr(0, 16) + ".json";
  const std::string path = (fs::path(folder) / "calibration" / name).string();
  if (std::optional<DeviceRates> stored = stored_rates(path, device.name())) return *stored;
  DeviceRates rates = measure_rates(device, slab, run);
  fs::create_directories(fs::path(path).parent_path());
  write_atomically(path, nlohmann::json{{"memory", rates.memory},
                                        {"context", rates.context},
                                        {"forward", rates.blocks.forward},
                                        {"backward", rates.blocks.backward},
                                        {"prepared_forward", rates.prepared.forward},
                                        {"prepared_backward", rates.prepared.backward},
                                        {"copies", rates.copies},
                                        {"scratch", rates.scratch}}
                             .dump(1));
  return rates;
}

}  // namespace squareq
