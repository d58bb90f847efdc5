#include "io/checkpoint_files.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "io/file.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndexEnding = ".safetensors.index.json";

std::string subfolder_of(Model kind) {
  switch (kind) {
    case Model::kTransformer: return "transformer";
    case Model::kT5: return "text_encoder_2";
    case Model::kClip: return "text_encoder";
    case Model::kVae: return "vae";
  }
  return "";
}

// How the single files of a part are called where all parts lie in one folder.
std::string usual_stem(Model kind) {
  switch (kind) {
    case Model::kTransformer: return "flux1";
    case Model::kT5: return "t5xxl";
    case Model::kClip: return "clip_l";
    case Model::kVae: return "ae.";
  }
  return "";
}

bool is_safetensors(const std::string& name) { return name.ends_with(".safetensors") || name.ends_with(".sft"); }

std::vector<std::string> file_names(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    std::string name = entry->path().filename().string();
    if (!name.starts_with(".") && entry->is_regular_file(error)) names.push_back(std::move(name));
  }
  if (error) throw FileError({folder.string(), error.message(), "a folder that can be listed", ""});
  std::sort(names.begin(), names.end());
  return names;
}

// The one of `names` that the part is read from: usual names first, then the only candidate of a kind.
std::optional<std::string> choose(const std::vector<std::string>& names, const fs::path& folder, Model kind) {
  for (const char* stem : {"diffusion_pytorch_model", "model"}) {
    for (const char* ending : {kIndexEnding, ".safetensors"}) {
      const std::string wanted = std::string(stem) + ending;
      if (std::binary_search(names.begin(), names.end(), wanted)) return wanted;
    }
  }
  std::vector<std::string> named;
  std::vector<std::string> indices;
  std::vector<std::string> others;
  for (const std::string& name : names) {
    if (is_safetensors(name) && name.starts_with(usual_stem(kind))) named.push_back(name);
    if (name.ends_with(kIndexEnding)) indices.push_back(name);
    if (is_safetensors(name)) others.push_back(name);
  }
  for (const std::vector<std::string>* candidates : {&named, &indices, &others}) {
    if (candidates->size() == 1) return candidates->front();
    if (candidates->size() > 1) {
      throw FormatError({folder.string(), fmt::format("several files: {}", fmt::join(*candidates, ", ")),
                         fmt::format("one file for the {}", name_of(kind)), "give the path of the file itself"});
    }
  }
  return std::nullopt;
}

std::map<std::string, std::string> read_index(const fs::path& path) {
  const std::string text = read_text(path.string());
  nlohmann::json json;
  try {
    json = nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    throw FormatError({path.string(), error.what(), "JSON with a weight_map", "the file is damaged"});
  }
  const auto map = json.is_object() ? json.find("weight_map") : json.end();
  if (!json.is_object() || map == json.end() || !map->is_object() || map->empty()) {
    throw FormatError({path.string(), "no weight_map", "a JSON object with 'weight_map': tensor to file", ""});
  }
  std::map<std::string, std::string> shards;
  for (const auto& [tensor, file] : map->items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : std::string();
    if (name.empty() || name.find('/') != std::string::npos || name == "..") {
      throw FormatError({fmt::format("{}: weight_map '{}'", path.string(), tensor),
                         file.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace),
                         "the name of a file in the same folder", ""});
    }
    shards[tensor] = (path.parent_path() / name).string();
  }
  return shards;
}

void refuse_other_formats(const fs::path& path) {
  const std::string ending = path.extension().string();
  const MappedFile file(path.string());
  const std::span<const std::byte> bytes = file.bytes();
  const std::string_view start(reinterpret_cast<const char*>(bytes.data()), std::min<std::size_t>(bytes.size(), 4));
  std::string format;
  if (start == "GGUF" || ending == ".gguf") format = "a GGUF file";
  const bool pickle = ending == ".ckpt" || ending == ".pt" || ending == ".pth" || ending == ".bin";
  if (start.starts_with("PK\x03\x04") || pickle) format = "a PyTorch file";
  if (!format.empty()) {
    throw FormatError({path.string(), format, "a safetensors file", "use the model's safetensors release"});
  }
}

}  // namespace

std::optional<PartFiles> find_part(const std::string& path, Model kind) {
  std::error_code error;
  fs::path place(path);
  const fs::file_status status = fs::status(place, error);
  if (!fs::exists(status)) throw FileError({path, error.message(), "a checkpoint file or folder", ""});
  if (fs::is_directory(status)) {
    if (fs::is_directory(place / subfolder_of(kind), error)) place /= subfolder_of(kind);
    const std::optional<std::string> name = choose(file_names(place), place, kind);
    if (!name) return std::nullopt;
    place /= *name;
  }
  PartFiles part{place.string(), {}};
  if (part.path.ends_with(".index.json")) {
    part.shards = read_index(place);
  } else {
    refuse_other_formats(place);
  }
  return part;
}

}  // namespace squareq
