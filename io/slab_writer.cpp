#include "io/slab_writer.h"

#include <fmt/format.h>

#include <algorithm>

#include "io/slab_draft.h"
#include "io/slab_header.h"
#include "io/slab_layout.h"
#include "io/slab_quantize.h"
#include "io/slab_shape.h"
#include "kernels/base/error.h"
#include "kernels/base/thread_pool.h"

namespace squareq {
namespace {

// Values that one thread holds as floats at a time. The sums of errors and the hash of the source run over these
// pieces in order, so they do not depend on the number of threads.
constexpr std::int64_t kPieceValues = std::int64_t{1} << 19;

struct Piece {
  QuantizationError error;
  std::string source;
};

struct Buffers {
  std::vector<float> floats;
  std::vector<float> scales;
  std::vector<std::byte> stored;
};

class SlabWriter {
 public:
  SlabWriter(const WeightSource& source, const SlabLayout& layout, SlabDraft& draft, std::uint64_t data_offset,
             ThreadPool& pool)
      : source_(source),
        layout_(layout),
        draft_(draft),
        data_offset_(data_offset),
        pool_(pool),
        buffers_(static_cast<std::size_t>(pool.size())) {}

  FinishedBlock write_block(std::size_t block) {
    FinishedBlock result{.id = layout_.blocks[block].id};
    std::string hashes;
    for (std::size_t i = 0; i < layout_.tensors.size(); ++i) {
      const SlabTensor& tensor = layout_.tensors[i];
      if (tensor.block != block) continue;
      if (tensor.role != SlabRole::kFloat && tensor.role != SlabRole::kValues) continue;
      QuantizationError error;
      for (const Piece& piece : write_tensor(tensor, tensor.role == SlabRole::kValues ? scales_after(i) : 0)) {
        error.add(piece.error);
        hashes += piece.source;
      }
      if (tensor.role == SlabRole::kValues) {
        result.layers.push_back({.name = tensor.name.substr(0, tensor.name.rfind('.')),
                                 .relative_l2 = error.relative_l2(),
                                 .cosine = error.cosine(),
                                 .max_abs = static_cast<double>(error.max_abs)});
      }
    }
    result.source = checksum_of(std::as_bytes(std::span(hashes)));
    result.checksum = checksum(block);
    return result;
  }

  std::string checksum(std::size_t block) const {
    const SlabBlock& b = layout_.blocks[block];
    return draft_.checksum(data_offset_ + b.offset, b.bytes);
  }

 private:
  std::uint64_t scales_after(std::size_t values) const {
    while (layout_.tensors[values].role != SlabRole::kScales) ++values;
    return layout_.tensors[values].offset;
  }

  std::vector<Piece> write_tensor(const SlabTensor& tensor, std::uint64_t scales_offset) {
    const std::int64_t rows = tensor.shape.at(0);
    const std::int64_t cols = tensor.shape.size() == 2 ? tensor.shape[1] : 1;
    const std::int64_t step = std::max<std::int64_t>(1, kPieceValues / cols);
    std::vector<Piece> pieces(static_cast<std::size_t>((rows + step - 1) / step));
    pool_.parallel_for(static_cast<std::int64_t>(pieces.size()), [&](std::int64_t index, int worker) {
      const std::int64_t begin = index * step;
      pieces[static_cast<std::size_t>(index)] = write_rows(tensor, scales_offset, begin, std::min(step, rows - begin),
                                                           cols, buffers_[static_cast<std::size_t>(worker)]);
    });
    return pieces;
  }

  Piece write_rows(const SlabTensor& tensor, std::uint64_t scales_offset, std::int64_t begin, std::int64_t rows,
                   std::int64_t cols, Buffers& buffers) {
    const auto count = static_cast<std::size_t>(rows * cols);
    buffers.floats.resize(count);
    source_.read(tensor.name, begin, rows, buffers.floats.data());
    Piece piece{.source = checksum_of(std::as_bytes(std::span(buffers.floats)))};

    const std::size_t size = size_of(tensor.dtype);
    buffers.stored.resize(count * size);
    if (tensor.role == SlabRole::kValues) {
      buffers.scales.resize(static_cast<std::size_t>(rows));
      piece.error = quantize_rows(buffers.floats.data(), rows, cols,
                                  reinterpret_cast<std::int8_t*>(buffers.stored.data()), buffers.scales.data());
      draft_.write(data_offset_ + scales_offset + static_cast<std::uint64_t>(begin) * sizeof(float),
                   std::as_bytes(std::span(buffers.scales)));
    } else {
      from_f32(buffers.floats.data(), tensor.dtype, buffers.stored.data(), rows * cols);
    }
    draft_.write(data_offset_ + tensor.offset + static_cast<std::uint64_t>(begin * cols) * size, buffers.stored);
    return piece;
  }

  const WeightSource& source_;
  const SlabLayout& layout_;
  SlabDraft& draft_;
  std::uint64_t data_offset_;
  ThreadPool& pool_;
  std::vector<Buffers> buffers_;
};

// Number of blocks that an earlier build finished, and that are still as it wrote them.
std::size_t intact_blocks(const SlabDraft& draft, const SlabLayout& layout, const SlabWriter& writer) {
  std::size_t count = 0;
  for (const FinishedBlock& block : draft.finished()) {
    if (count == layout.blocks.size() || block.id != layout.blocks[count].id) break;
    if (writer.checksum(count) != block.checksum) break;
    ++count;
  }
  return count;
}

std::string complete_header(const SlabShape& shape, SlabLayout& layout, const std::vector<FinishedBlock>& blocks) {
  std::string sources;
  auto layer = layout.layers.begin();
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    layout.blocks[i].checksum = blocks[i].checksum;
    sources += blocks[i].source;
    for (const SlabLayer& measured : blocks[i].layers) {
      layer = std::find_if(layer, layout.layers.end(), [&](const SlabLayer& l) { return l.name == measured.name; });
      if (layer == layout.layers.end()) throw std::logic_error("slab: layers out of order");
      layer->relative_l2 = measured.relative_l2;
      layer->cosine = measured.cosine;
      layer->max_abs = measured.max_abs;
    }
  }
  return slab_header(shape, layout, checksum_of(std::as_bytes(std::span(sources))));
}

}  // namespace

void write_slab(const WeightSource& source, const SlabShape& shape, const std::string& path,
                const SlabOptions& options) {
  SlabLayout layout = lay_out_slab(
      shape, [&](const std::string&) { return options.codec; },
      [&](const std::string& tensor) { return source.dtype(tensor); });
  // Layout and codecs are in the header, and with its reserved place the draft depends on nothing else but the source.
  const std::string reserved = slab_header(shape, layout, "");
  const std::uint64_t data_offset = reserved.size();
  const std::string identity = reserved + source.key();
  SlabDraft draft(path, checksum_of(std::as_bytes(std::span(identity))), data_offset + layout.bytes);

  ThreadPool pool(options.threads);
  SlabWriter writer(source, layout, draft, data_offset, pool);
  const std::size_t resumed = intact_blocks(draft, layout, writer);
  draft.keep_finished(resumed);
  SlabProgress progress{.total = data_offset + layout.bytes};
  for (std::size_t i = 0; i < resumed; ++i) progress.resumed += layout.blocks[i].bytes;
  progress.done = progress.resumed;
  try {
    for (std::size_t i = resumed; i < layout.blocks.size(); ++i) {
      draft.finish(writer.write_block(i));
      progress.done += layout.blocks[i].bytes;
      progress.block = layout.blocks[i].id;
      if (options.progress) options.progress(progress);
    }
  } catch (const FormatError&) {
    draft.discard();  // no later build can finish it
    throw;
  }
  const std::string header = complete_header(shape, layout, draft.finished());
  if (header.size() != data_offset) throw std::logic_error("slab: the header outgrew its place");
  draft.write(0, std::as_bytes(std::span(header)));
  draft.commit();
}

}  // namespace squareq
