#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "io/file.h"
#include "io/slab_build.h"
#include "io/slab_header.h"
#include "io/slab_layout.h"
#include "io/slab_synth.h"
#include "kernels/base/error.h"
#include "kernels/base/thread_pool.h"

namespace squareq {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// A tensor of the checkpoint that is written, made of row ranges of a canonical one.
struct FileTensor {
  TensorInfo info;  // offsets from the start of the shard's data
  std::string source;
  std::vector<RowSpan> rows;
};

std::vector<FileTensor> file_tensors(const SlabShape& shape) {
  std::vector<FileTensor> tensors;
  for (const NamedShape& tensor : slab_tensors(shape)) {
    if (const auto* flux = std::get_if<FluxShape>(&shape)) {
      for (DiffusersTensor& part : names_in_diffusers(tensor, *flux)) {
        tensors.push_back({{.name = part.name, .dtype = DType::BF16, .shape = part.shape}, tensor.name, part.rows});
      }
    } else {
      tensors.push_back(
          {{.name = tensor.name, .dtype = DType::BF16, .shape = tensor.shape}, tensor.name, {{0, tensor.shape[0]}}});
    }
  }
  return tensors;
}

// Cuts the list into shards and places the tensors in them.
std::vector<std::vector<FileTensor>> into_shards(std::vector<FileTensor> tensors, std::uint64_t shard_bytes) {
  std::vector<std::vector<FileTensor>> shards;
  std::uint64_t used = 0;
  for (FileTensor& tensor : tensors) {
    const std::uint64_t bytes = static_cast<std::uint64_t>(tensor.info.count()) * size_of(tensor.info.dtype);
    if (shards.empty() || (used > 0 && used + bytes > shard_bytes)) {
      shards.emplace_back();
      used = 0;
    }
    tensor.info.begin = used;
    tensor.info.end = used += bytes;
    shards.back().push_back(std::move(tensor));
  }
  return shards;
}

constexpr std::int64_t kPieceValues = std::int64_t{1} << 19;  // one thread's at a time

class ShardWriter {
 public:
  ShardWriter(const WeightSource& source, ThreadPool& pool) : source_(source), pool_(pool) {}

  // Calls `written` after every tensor.
  void write(const std::string& path, const std::vector<FileTensor>& tensors,
             const std::function<void(const FileTensor&)>& written) {
    AtomicFile file(path);
    std::vector<TensorInfo> infos;
    infos.reserve(tensors.size());
    for (const FileTensor& tensor : tensors) infos.push_back(tensor.info);
    const std::string header = tensors_header(infos, {{"format", "pt"}}, 8);
    file.write(header);
    for (const FileTensor& tensor : tensors) {
      write_tensor(file, header.size(), tensor);
      written(tensor);
    }
    file.commit();
  }

 private:
  void write_tensor(AtomicFile& file, std::uint64_t data_offset, const FileTensor& tensor) {
    const std::int64_t cols = tensor.info.shape.size() == 2 ? tensor.info.shape[1] : 1;
    const std::int64_t step = std::max<std::int64_t>(1, kPieceValues / cols);
    std::uint64_t offset = data_offset + tensor.info.begin;
    for (const RowSpan& span : tensor.rows) {
      pool_.parallel_for((span.rows + step - 1) / step, [&](std::int64_t index, int) {
        const std::int64_t rows = std::min(step, span.rows - index * step);
        std::vector<float> values(static_cast<std::size_t>(rows * cols));
        source_.read(tensor.source, span.begin + index * step, rows, values.data());
        std::vector<std::byte> stored(values.size() * size_of(DType::BF16));
        from_f32(values.data(), DType::BF16, stored.data(), rows * cols);
        file.write_at(offset + static_cast<std::uint64_t>(index * step * cols) * size_of(DType::BF16), stored);
      });
      offset += static_cast<std::uint64_t>(span.rows * cols) * size_of(DType::BF16);
    }
  }

  const WeightSource& source_;
  ThreadPool& pool_;
};

Json config_of(const FluxShape& s) {
  return {{"_class_name", "FluxTransformer2DModel"},
          {"attention_head_dim", s.head_dim},
          {"axes_dims_rope", s.axes},
          {"guidance_embeds", s.guidance},
          {"in_channels", s.in_channels},
          {"joint_attention_dim", s.context_in},
          {"num_attention_heads", s.heads},
          {"num_layers", s.double_blocks},
          {"num_single_layers", s.single_blocks},
          {"out_channels", s.out_channels},
          {"patch_size", 1},
          {"pooled_projection_dim", s.vector_in}};
}

Json config_of(const T5Shape& s) {
  return {{"architectures", {"T5EncoderModel"}},
          {"d_ff", s.mlp_hidden},
          {"d_kv", s.head_dim},
          {"d_model", s.width},
          {"dense_act_fn", "gelu_pytorch_tanh"},
          {"feed_forward_proj", "gated-gelu"},
          {"is_gated_act", true},
          {"layer_norm_epsilon", s.epsilon},
          {"model_type", "t5"},
          {"num_heads", s.heads},
          {"num_layers", s.layers},
          {"relative_attention_max_distance", s.max_distance},
          {"relative_attention_num_buckets", s.buckets},
          {"torch_dtype", "bfloat16"},
          {"vocab_size", s.vocab}};
}

}  // namespace

void synthesize_checkpoint(const SlabShape& shape, const std::string& folder, const SynthOptions& options,
                           std::uint64_t shard_bytes) {
  check_shape(shape, folder);
  const bool flux = std::holds_alternative<FluxShape>(shape);
  const fs::path part = fs::path(folder) / (flux ? "transformer" : "text_encoder_2");
  std::error_code error;
  fs::create_directories(part, error);
  if (!error && !fs::is_empty(part, error)) {
    throw FileError({part.string(), "a folder with files in it", "an empty or new folder"});
  }
  if (error) throw FileError({part.string(), error.message(), "a folder to write to"});

  const std::string stem = flux ? "diffusion_pytorch_model" : "model";
  const std::vector<std::vector<FileTensor>> shards = into_shards(file_tensors(shape), shard_bytes);
  SlabProgress progress;
  for (const auto& shard : shards) progress.total += shard.back().info.end;
  const SyntheticSource source(shape, options.seed);
  ThreadPool pool(options.threads);
  ShardWriter writer(source, pool);
  Json weight_map;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shards.size() == 1
                                 ? stem + ".safetensors"
                                 : fmt::format("{}-{:05}-of-{:05}.safetensors", stem, i + 1, shards.size());
    progress.block = name;
    writer.write((part / name).string(), shards[i], [&](const FileTensor& tensor) {
      weight_map[tensor.info.name] = name;
      progress.done += tensor.info.end - tensor.info.begin;
      if (options.progress) options.progress(progress);
    });
  }
  if (shards.size() > 1) {
    const Json index{{"metadata", {{"total_size", progress.total}}}, {"weight_map", weight_map}};
    write_atomically((part / (stem + ".safetensors.index.json")).string(), index.dump(2) + "\n");
  }
  const Json config = std::visit([](const auto& s) { return config_of(s); }, shape);
  write_atomically((part / "config.json").string(), config.dump(2) + "\n");
}

}  // namespace squareq
