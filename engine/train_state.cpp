#include "engine/train_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/identity.h"
#include "io/file.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "squareq state";
constexpr int kVersion = 1;
constexpr const char* kGenerator = "philox4x32-10";  // what a seed means
constexpr const char* kChecksum = "sha256";
constexpr std::int64_t kPieceBytes = 16 << 20;

std::string to_text(const TrainState& s) {
  const TrainProgress& p = s.progress;
  return Json{{"version", kVersion},
              {"step", p.step},
              {"updates", p.updates},
              {"batches", p.batches},
              {"skipped", p.skipped},
              {"evaluated", p.evaluated},
              {"guard", {{"updates", p.guard.updates}, {"mean_norm", p.guard.mean_norm}}},
              {"seconds", p.seconds},
              {"generator", kGenerator},
              {"config", s.config},
              {"config_sha256", content_hash(s.config)},
              {"model", s.model},
              {"data", s.data},
              {"kernel_choices", s.kernel_choices},
              {"logs", s.logs}}
      .dump();
}

TrainState from_text(const std::string& text, const std::string& path) {
  try {
    const Json json = Json::parse(text);
    if (json.at("version") != kVersion || json.at("generator") != kGenerator) {
      throw FormatError({path, "a state of another version", fmt::format("version {}", kVersion),
                         "resume with the program that wrote it, or set resume to \"off\""});
    }
    TrainState s{.config = json.at("config"),
                 .model = json.at("model"),
                 .data = json.at("data"),
                 .kernel_choices = json.at("kernel_choices"),
                 .logs = json.at("logs")};
    s.progress = {.step = json.at("step"),
                  .updates = json.at("updates"),
                  .batches = json.at("batches"),
                  .skipped = json.at("skipped"),
                  .evaluated = json.at("evaluated"),
                  .guard = {.updates = json.at("guard").at("updates"), .mean_norm = json.at("guard").at("mean_norm")},
                  .seconds = json.at("seconds")};
    if (content_hash(s.config) == json.at("config_sha256")) return s;
  } catch (const Json::exception&) {
  }
  throw FormatError({path, "a damaged description of the run", "the one that was saved", ""});
}

// Tensors of a state in the order of the file, wide elements first so that all are aligned.
std::vector<std::pair<std::string, View>> stored_views(const LoraSet& lora) {
  auto views = lora.learnt();
  std::stable_sort(views.begin(), views.end(),
                   [](const auto& a, const auto& b) { return size_of(a.second.dtype) > size_of(b.second.dtype); });
  return views;
}

TensorOut described(const std::string& name, DType dtype, std::int64_t count, const std::byte* data) {
  const auto bytes = static_cast<std::size_t>(count) * size_of(dtype);
  return {.name = name, .dtype = dtype, .shape = {count}, .data = {data, bytes}};
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Writes to a file and hashes what it writes.
class HashedFile {
 public:
  explicit HashedFile(const std::string& path) : file_(path) {}
  void write(std::string_view bytes) {
    hash_.add(bytes);
    file_.write(bytes);
  }
  void finish() {
    file_.write(hash_.hex());
    file_.commit();
  }

 private:
  AtomicFile file_;
  Sha256 hash_;
};

}  // namespace

void save_state(const std::string& path, Device& device, const LoraSet& lora, const TrainState& state) {
  const std::vector<double>& losses = state.progress.losses;
  const auto views = stored_views(lora);
  std::vector<TensorOut> tensors{described("losses", DType::F64, static_cast<std::int64_t>(losses.size()),
                                           reinterpret_cast<const std::byte*>(losses.data()))};
  for (const auto& [name, view] : views) tensors.push_back(described(name, view.dtype, view.count(), view.data));
  tensors.push_back(described(kChecksum, DType::U8, 64, nullptr));

  HashedFile file(path);
  file.write(safetensors_header(tensors, {{"format", kFormat}, {"state", to_text(state)}}));
  file.write(text_of(tensors.front().data));
  std::vector<std::byte> piece(static_cast<std::size_t>(kPieceBytes));
  for (const auto& [name, view] : views) {
    const auto size = static_cast<std::int64_t>(size_of(view.dtype));
    const std::int64_t step = kPieceBytes / size;
    for (std::int64_t begin = 0; begin < view.count(); begin += step) {
      const View part(view.data + begin * size, view.dtype, 1, 1, std::min(step, view.count() - begin));
      device.download(part, piece.data());
      file.write(text_of(std::span(piece).first(part.bytes())));
    }
  }
  file.finish();
}

StateFile::StateFile(const std::string& path) : file_(path) {
  const auto& metadata = file_.metadata();
  const auto text = metadata.find("state");
  if (metadata.count("format") == 0 || metadata.at("format") != kFormat || text == metadata.end()) {
    throw FormatError({path, "another kind of file", "a state that squareq-train saved", ""});
  }
  const TensorInfo& checksum = file_.get(kChecksum);
  const std::span<const std::byte> sum = file_.data(checksum);
  const std::span<const std::byte> all(sum.data() - checksum.begin, checksum.begin);
  if (content_hash(text_of(all)) != text_of(sum)) {
    throw FormatError({path, "damaged content", "what its checksum says",
                       "remove it to go on from an older state, or set resume to \"off\""});
  }
  state_ = from_text(text->second, path);
  const TensorInfo& losses = file_.get("losses");
  if (losses.dtype != DType::F64 || losses.shape != std::vector<std::int64_t>{state_.progress.step}) {
    throw FormatError({path, "losses of another number of steps", std::to_string(state_.progress.step), ""});
  }
  state_.progress.losses.resize(static_cast<std::size_t>(state_.progress.step));
  const std::span<const std::byte> bytes = file_.data(losses);
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<std::byte*>(state_.progress.losses.data()));
}

void StateFile::restore(Device& device, const LoraSet& lora) const {
  const auto views = stored_views(lora);
  for (const auto& [name, view] : views) {
    const TensorInfo* stored = file_.find(name);
    if (stored != nullptr && stored->dtype == view.dtype && stored->shape == std::vector{view.count()}) continue;
    throw FormatError(
        {fmt::format("{}: tensor '{}'", file_.path(), name),
         stored == nullptr ? "nothing" : fmt::format("{} {}", name_of(stored->dtype), shape_text(stored->shape)),
         fmt::format("{} [{}]", name_of(view.dtype), view.count()), "the state belongs to other adapters"});
  }
  for (const auto& [name, view] : views) device.upload(file_.data(file_.get(name)).data(), view);
}

std::string state_path(const std::string& folder, const std::string& name, std::int64_t step) {
  return (fs::path(folder) / fmt::format("{}-{:06}.state", name, step)).string();
}

std::vector<SavedState> find_states(const std::string& folder, const std::string& name) {
  constexpr std::string_view kEnding = ".state";
  std::vector<SavedState> found;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const std::string file = entry.path().filename().string();
    if (!file.starts_with(name + "-") || !file.ends_with(kEnding)) continue;
    const std::string digits = file.substr(name.size() + 1, file.size() - name.size() - 1 - kEnding.size());
    std::int64_t step = 0;
    const auto [end, problem] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
    if (problem != std::errc() || end != digits.data() + digits.size() || step < 0) continue;
    const std::string path = state_path(folder, name, step);
    if (path == (fs::path(folder) / file).string()) found.push_back({.step = step, .path = path});
  }
  std::sort(found.begin(), found.end(), [](const SavedState& a, const SavedState& b) { return a.step > b.step; });
  return found;
}

}  // namespace squareq
