#include "io/slab_layout.h"

#include <fmt/format.h>

#include <unordered_map>

#include "kernels/base/error.h"

namespace squareq {
namespace {

std::uint64_t round_up(std::uint64_t n, std::uint64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// The first `parts` parts of a dotted name.
std::string head(std::string_view name, int parts) {
  std::size_t end = 0;
  for (int i = 0; i < parts; ++i) end = name.find('.', end + (i > 0 ? 1 : 0));
  return std::string(name.substr(0, end));
}

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

std::string block_of(std::string_view tensor) {
  if (tensor.starts_with("double_blocks.") || tensor.starts_with("single_blocks.")) {
    const bool modulation = contains(tensor, "_mod.") || contains(tensor, ".modulation.");
    return (modulation ? "modulation." : "") + head(tensor, 2);
  }
  if (tensor.starts_with("final_layer.")) return "final_layer";
  if (tensor.starts_with("encoder.block.")) return head(tensor, 3);
  if (tensor.starts_with("encoder.")) return "final";
  return "embed";
}

std::vector<std::string> block_ids(const FluxShape& shape) {
  std::vector<std::string> ids{"embed"};
  for (const char* region : {"modulation.", ""}) {
    for (std::int64_t i = 0; i < shape.double_blocks; ++i) ids.push_back(fmt::format("{}double_blocks.{}", region, i));
    for (std::int64_t i = 0; i < shape.single_blocks; ++i) ids.push_back(fmt::format("{}single_blocks.{}", region, i));
  }
  ids.emplace_back("final_layer");
  return ids;
}

std::vector<std::string> block_ids(const T5Shape& shape) {
  std::vector<std::string> ids{"embed"};
  for (std::int64_t i = 0; i < shape.layers; ++i) ids.push_back(fmt::format("encoder.block.{}", i));
  ids.emplace_back("final");
  return ids;
}

bool is_matrix(const NamedShape& tensor) { return tensor.shape.size() == 2; }

// The linear layers inside the blocks are quantised; what feeds and reads out the network stays float.
bool takes_codec(const NamedShape& tensor, std::string_view block) {
  return is_matrix(tensor) && block != "embed" && block != "final_layer" && block != "final" &&
         !contains(tensor.name, "relative_attention_bias");
}

class LayoutWriter {
 public:
  explicit LayoutWriter(SlabLayout& layout) : layout_(layout) {}

  void begin_block(std::string id) { layout_.blocks.push_back({.id = std::move(id), .offset = layout_.bytes}); }

  void add(std::string name, SlabRole role, DType dtype, std::vector<std::int64_t> shape) {
    pad_to(kSlabAlignment);
    layout_.blocks.back().tensors.push_back(name);
    push(std::move(name), role, dtype, std::move(shape));
  }

  void end_block() {
    pad_to(kSlabPage);
    layout_.blocks.back().bytes = layout_.bytes - layout_.blocks.back().offset;
  }

 private:
  void pad_to(std::uint64_t multiple) {
    const std::uint64_t gap = round_up(layout_.bytes, multiple) - layout_.bytes;
    if (gap == 0) return;
    push(fmt::format("__pad.{}", pads_++), SlabRole::kPadding, DType::U8, {static_cast<std::int64_t>(gap)});
  }

  void push(std::string name, SlabRole role, DType dtype, std::vector<std::int64_t> shape) {
    std::uint64_t bytes = size_of(dtype);
    for (const std::int64_t n : shape) bytes *= static_cast<std::uint64_t>(n);
    layout_.tensors.push_back(
        {std::move(name), role, dtype, std::move(shape), layout_.bytes, bytes, layout_.blocks.size() - 1});
    layout_.bytes += bytes;
  }

  SlabLayout& layout_;
  std::size_t pads_ = 0;
};

void check_sizes(std::initializer_list<std::int64_t> sizes, std::initializer_list<std::int64_t> counts,
                 const std::string& where) {
  constexpr std::int64_t kMaxSize = std::int64_t{1} << 20;
  constexpr std::int64_t kMaxBlocks = 4096;
  for (const std::int64_t size : sizes) {
    if (size < 1 || size > kMaxSize) {
      throw FormatError({where, fmt::format("size {}", size), fmt::format("1 to {}", kMaxSize)});
    }
  }
  for (const std::int64_t count : counts) {
    if (count < 0 || count > kMaxBlocks) {
      throw FormatError({where, fmt::format("{} blocks", count), fmt::format("0 to {}", kMaxBlocks)});
    }
  }
}

void check(const FluxShape& s, const std::string& where) {
  check_sizes({s.hidden, s.heads, s.head_dim, s.mlp_hidden, s.context_in, s.vector_in, s.in_channels, s.out_channels},
              {s.double_blocks, s.single_blocks}, where);
  if (s.heads * s.head_dim != s.hidden) {
    throw FormatError({where, fmt::format("{} heads of {}", s.heads, s.head_dim), fmt::format("{} in all", s.hidden)});
  }
  std::int64_t features = 0;
  for (const std::int64_t axis : s.axes) {
    if (axis < 0 || axis > s.head_dim || axis % 2 != 0) features = -s.head_dim * 3;
    features += axis;
  }
  if (features != s.head_dim) {
    throw FormatError({where, fmt::format("RoPE axes {}, {}, {}", s.axes[0], s.axes[1], s.axes[2]),
                       fmt::format("even sizes that sum to the head size {}", s.head_dim)});
  }
  if (!(s.theta > 0.0 && s.theta < 1e12)) throw FormatError({where, fmt::format("theta {}", s.theta), "above 0"});
}

void check(const T5Shape& s, const std::string& where) {
  check_sizes({s.vocab, s.width, s.heads, s.head_dim, s.mlp_hidden, s.buckets, s.max_distance}, {s.layers}, where);
  if (!(s.epsilon > 0.0 && s.epsilon < 1.0)) {
    throw FormatError({where, fmt::format("epsilon {}", s.epsilon), "between 0 and 1"});
  }
}

}  // namespace

std::vector<NamedShape> slab_tensors(const SlabShape& shape) {
  if (const auto* flux = std::get_if<FluxShape>(&shape)) return flux_tensors(*flux);
  return t5_tensors(std::get<T5Shape>(shape));
}

void check_shape(const SlabShape& shape, const std::string& where) {
  std::visit([&](const auto& s) { check(s, where); }, shape);
}

SlabLayout lay_out_slab(const SlabShape& shape, const std::function<Codec(const std::string& layer)>& codec_of,
                        const std::function<DType(const std::string& tensor)>& dtype_of) {
  std::unordered_map<std::string, std::vector<NamedShape>> members;
  for (NamedShape& tensor : slab_tensors(shape)) members[block_of(tensor.name)].push_back(std::move(tensor));

  SlabLayout layout;
  LayoutWriter writer(layout);
  for (const std::string& id : std::visit([](const auto& s) { return block_ids(s); }, shape)) {
    writer.begin_block(id);
    for (NamedShape& tensor : members[id]) {
      if (!is_matrix(tensor)) {
        writer.add(tensor.name, SlabRole::kFloat, DType::F32, tensor.shape);
        continue;
      }
      const std::string layer = tensor.name.substr(0, tensor.name.rfind('.'));
      const Codec codec = takes_codec(tensor, id) ? codec_of(layer) : Codec::kFloat;
      layout.layers.push_back(
          {.name = layer, .block = id, .codec = codec, .out = tensor.shape[0], .in = tensor.shape[1]});
      if (codec == Codec::kInt8Rows) {
        writer.add(tensor.name, SlabRole::kValues, DType::I8, tensor.shape);
        writer.add(tensor.name + ".scale", SlabRole::kScales, DType::F32, {tensor.shape[0]});
      } else {
        const DType source = dtype_of(tensor.name);
        const bool half = source == DType::F16 || source == DType::BF16;
        writer.add(tensor.name, SlabRole::kFloat, half ? source : DType::F32, tensor.shape);
      }
    }
    writer.end_block();
  }
  return layout;
}

std::string_view name_of(Codec codec) { return codec == Codec::kInt8Rows ? "int8" : "float"; }

std::optional<Codec> codec_from_name(std::string_view name) {
  for (const Codec codec : {Codec::kFloat, Codec::kInt8Rows}) {
    if (name == name_of(codec)) return codec;
  }
  return std::nullopt;
}

}  // namespace squareq
