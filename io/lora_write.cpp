#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <memory>
#include <span>
#include <stdexcept>
#include <tuple>

#include "io/lora_file.h"
#include "io/lora_layout.h"
#include "io/safetensors.h"
#include "io/tensor_names.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

using Bytes = std::span<const std::byte>;

class Digest {
 public:
  Digest() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) { EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr); }
  void add(Bytes bytes) { EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()); }
  std::string hex() {
    unsigned char sum[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    EVP_DigestFinal_ex(context_.get(), sum, &size);
    std::string text;
    for (unsigned i = 0; i < size; ++i) text += fmt::format("{:02x}", sum[i]);
    return text;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

// SHA-256 over bytes [begin, end) of the pieces joined, as far as there are any.
std::string hash_range(const std::vector<Bytes>& pieces, std::size_t begin, std::size_t end) {
  Digest digest;
  std::size_t at = 0;
  for (const Bytes& piece : pieces) {
    const std::size_t first = std::clamp(begin, at, at + piece.size());
    const std::size_t last = std::clamp(end, at, at + piece.size());
    if (first < last) digest.add(piece.subspan(first - at, last - first));
    at += piece.size();
  }
  return digest.hex();
}

// The two hashes that tools of kohya's family compute. The legacy one covers a fixed window of the file as it would be
// with only the "ss_" entries.
void add_hashes(const std::vector<TensorOut>& sorted, std::map<std::string, std::string>& metadata) {
  constexpr std::size_t kWindowBegin = 0x100000;
  constexpr std::size_t kWindow = 0x10000;
  std::map<std::string, std::string> training;
  for (const auto& [key, value] : metadata) {
    if (key.starts_with("ss_")) training.emplace(key, value);
  }
  const std::string header = safetensors_header(sorted, training);
  std::vector<Bytes> pieces;
  pieces.reserve(sorted.size() + 1);
  for (const TensorOut& tensor : sorted) pieces.push_back(tensor.data);
  metadata["sshs_model_hash"] = hash_range(pieces, 0, SIZE_MAX);
  pieces.insert(pieces.begin(), std::as_bytes(std::span(header)));
  metadata["sshs_legacy_hash"] = hash_range(pieces, kWindowBegin, kWindowBegin + kWindow).substr(0, 8);
}

// Module names in a file, by linear, first row and number of rows.
using Names = std::map<std::tuple<std::string, std::int64_t, std::int64_t>, std::string>;

Names kohya_names(const FluxShape& shape) {
  Names names;
  for (const LinearSize& linear : flux_linears(shape)) {
    std::string name = "lora_unet_" + linear.name;
    std::replace(name.begin(), name.end(), '.', '_');
    names[{linear.name, 0, linear.out}] = name;
  }
  return names;
}

Names peft_names(const FluxShape& shape) {
  Names names;
  for (const LinearSize& linear : flux_linears(shape)) {
    for (const ModulePart& part : module_parts(linear.name, linear.out, shape)) {
      names[{linear.name, part.row_begin, part.rows}] = "transformer." + part.module;
    }
  }
  return names;
}

std::vector<std::byte> convert(std::span<const float> values, DType dtype, const std::string& place) {
  const auto count = static_cast<std::int64_t>(values.size());
  std::vector<std::byte> bytes(values.size() * size_of(dtype));
  from_f32(values.data(), dtype, bytes.data(), count);
  std::vector<float> stored(values.size());
  to_f32(bytes.data(), dtype, stored.data(), count);
  for (std::size_t i = 0; i < stored.size(); ++i) {
    if (std::isfinite(stored[i])) continue;
    throw NumericError({place, fmt::format("{} at element {}", values[i], i),
                        fmt::format("values that are finite as {}", name_of(dtype)),
                        std::isfinite(values[i]) ? "write BF16 or F32 instead" : "the training has diverged"});
  }
  return bytes;
}

}  // namespace

std::map<std::string, std::string> lora_metadata(const LoraMetadata& about) {
  std::map<std::string, std::string> entries{
      {"ss_v2", "False"},
      {"ss_base_model_version", "flux1"},
      {"ss_model_type", "flux"},
      {"ss_network_module", "networks.lora_flux"},
      {"ss_network_dim", fmt::format("{}", about.rank)},
      {"ss_network_alpha", fmt::format("{}", about.alpha)},
      {"ss_output_name", about.output_name},
      {"ss_sd_model_name", about.base_model},
      {"modelspec.sai_model_spec", "1.0.1"},
      {"modelspec.architecture", about.guidance ? "flux-1-dev/lora" : "flux-1-schnell/lora"},
      {"modelspec.implementation", "https://github.com/black-forest-labs/flux"},
      {"modelspec.implementation_version", about.implementation_version},
      {"modelspec.title", about.output_name.empty() ? "LoRA" : about.output_name},
      {"modelspec.resolution", fmt::format("{}x{}", about.width, about.height)},
  };
  if (about.finished_at != 0) {
    entries["ss_training_finished_at"] = fmt::format("{}", about.finished_at);
    const auto seconds = static_cast<std::time_t>(about.finished_at);
    std::tm local{};
    localtime_r(&seconds, &local);
    char text[32];
    std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &local);
    entries["modelspec.date"] = text;
  }
  for (const auto& [key, value] : about.extra) entries[key] = value;
  std::erase_if(entries, [](const auto& entry) { return entry.second.empty(); });
  return entries;
}

void write_lora(const std::string& path, const std::vector<LoraAdapter>& adapters, const FluxShape& shape,
                LoraNaming naming, DType dtype, std::map<std::string, std::string> metadata) {
  const Names names = naming == LoraNaming::kKohya ? kohya_names(shape) : peft_names(shape);
  std::vector<std::vector<std::byte>> payloads;
  std::vector<TensorOut> tensors;
  const auto add = [&](const std::string& name, DType type, std::vector<std::int64_t> sides,
                       std::span<const float> values) {
    payloads.push_back(convert(values, type, fmt::format("{}: tensor '{}'", path, name)));
    tensors.push_back({name, type, std::move(sides), payloads.back()});  // its memory stays when the vector moves
  };
  for (const LoraAdapter& a : adapters) {
    const auto name = names.find({a.linear, a.row_begin, a.rows});
    if (name == names.end() || (naming == LoraNaming::kPeft && a.scale() != 1.0F)) {
      throw std::logic_error("write_lora: the adapter on " + a.linear + " is not arranged for this naming");
    }
    if (naming == LoraNaming::kKohya) {
      add(name->second + ".lora_down.weight", dtype, {a.rank, a.in}, a.down);
      add(name->second + ".lora_up.weight", dtype, {a.rows, a.rank}, a.up);
      add(name->second + ".alpha", DType::F32, {}, {&a.alpha, 1});
    } else {
      add(name->second + ".lora_A.weight", dtype, {a.rank, a.in}, a.down);
      std::vector<float> up = a.up;
      if (a.linear == kSwappedModule) swap_halves(up);
      add(name->second + ".lora_B.weight", dtype, {a.rows, a.rank}, up);
    }
  }
  sort_for_writing(tensors);
  add_hashes(tensors, metadata);
  write_safetensors(path, std::move(tensors), metadata);
}

std::string model_hash(const std::string& path) {
  const MappedFile bytes(path);
  const std::span<const std::byte> all = bytes.bytes();
  return hash_range({all.subspan(parse_safetensors(all, path).data_begin)}, 0, SIZE_MAX);
}

}  // namespace squareq
