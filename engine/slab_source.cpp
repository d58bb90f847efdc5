#include "engine/slab_source.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace squareq {
namespace {

// Small enough that a piece is still in the processor's cache when the device reads it, large enough for full speed of
// the copies.
constexpr std::size_t kPiece = std::size_t{2} << 20U;
constexpr std::size_t kPage = RandomAccessFile::kPage;
// Direct reads start and end at pages, parts need not.
constexpr std::size_t kChunk = kPiece + 2 * kPage;
constexpr std::size_t kChunksPerReader = 3;  // one is filled, one waits for its copy, one is copied

constexpr std::uint64_t page_begin(std::uint64_t offset) { return offset / kPage * kPage; }
constexpr std::uint64_t page_end(std::uint64_t offset) { return page_begin(offset + kPage - 1); }

}  // namespace

std::vector<bool> cached_parts(const std::vector<SlabPart>& parts, std::size_t budget) {
  std::size_t total = 0;
  for (const SlabPart& part : parts) total += part.streamed ? part.bytes : 0;
  const double share = budget < total ? static_cast<double>(budget) / static_cast<double>(total) : 1.0;
  std::vector<bool> cached(parts.size(), false);
  std::size_t seen = 0;
  std::size_t taken = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (!parts[i].streamed) continue;
    seen += parts[i].bytes;
    cached[i] = static_cast<double>(taken + parts[i].bytes) <= share * static_cast<double>(seen);
    if (cached[i]) taken += parts[i].bytes;
  }
  return cached;
}

// A chunk of the ring that nobody copies from.
class SlabSource::Loan {
 public:
  explicit Loan(SlabSource& source) : source_(source) {
    std::unique_lock lock(source_.mutex_);
    source_.returned_.wait(lock, [&] { return !source_.free_.empty(); });
    chunk_ = std::move(source_.free_.front());
    source_.free_.pop_front();
    lock.unlock();
    try {
      source_.transfers_.wait(*chunk_.copied);
    } catch (...) {
      give_back();
      throw;
    }
  }
  ~Loan() { give_back(); }
  Loan(const Loan&) = delete;
  Loan& operator=(const Loan&) = delete;

  std::span<std::byte> memory() const { return {chunk_.memory, kChunk}; }
  Event& copied() const { return *chunk_.copied; }

 private:
  void give_back() {
    {
      const std::lock_guard lock(source_.mutex_);
      source_.free_.push_back(std::move(chunk_));
    }
    source_.returned_.notify_one();
  }

  SlabSource& source_;
  Chunk chunk_;
};

SlabSource::SlabSource(const Slab& slab, Transfers& transfers, std::vector<SlabPart> parts, HostPath path,
                       std::size_t readers, std::size_t page_cache)
    : slab_(slab),
      transfers_(transfers),
      parts_(std::move(parts)),
      file_(slab.path(), RandomAccessFile::Mode::kCached),
      path_(choose(path, page_cache)),
      fall_back_(path == HostPath::kAuto) {
  for (const SlabPart& part : parts_) blocks_.try_emplace(part.block);
  const std::size_t chunks = kChunksPerReader * readers;
  ring_ = transfers_.allocate_pinned(chunks * kChunk);
  for (std::size_t i = 0; i < chunks; ++i) {
    free_.push_back({.memory = ring_.get() + i * kChunk, .copied = transfers_.make_event()});
  }
  if (path_ != HostPath::kRegistered) return;
  const auto streamed = std::find_if(parts_.begin(), parts_.end(), [](const SlabPart& part) { return part.streamed; });
  register_block(streamed->block);
  if (!blocks_.at(streamed->block).registration) path_ = HostPath::kRing;
}

// A slab that does not fit is read past the page cache, but for as much as that can hold: it would have lost each part
// of the slab before the next use.
HostPath SlabSource::choose(HostPath wanted, std::size_t page_cache) {
  const bool streams = std::any_of(parts_.begin(), parts_.end(), [](const SlabPart& part) { return part.streamed; });
  const bool fits = slab_.file_bytes() <= page_cache;
  if (wanted == HostPath::kDirect || (wanted == HostPath::kAuto && streams && !fits)) {
    try {
      direct_.emplace(slab_.path(), RandomAccessFile::Mode::kDirect);
      cached_ = cached_parts(parts_, wanted == HostPath::kAuto ? page_cache : 0);
      return HostPath::kDirect;
    } catch (const FileError& error) {
      if (wanted == HostPath::kDirect) {
        throw ConfigError({.where = "host_path",
                           .found = "direct, but " + slab_.path() + " has no direct reads: " + error.problem().found,
                           .expected = "registered, ring or auto",
                           .advice = ""});
      }
    }
  }
  if (wanted == HostPath::kRing || !streams || (wanted == HostPath::kAuto && !fits)) return HostPath::kRing;
  return HostPath::kRegistered;
}

std::string SlabSource::path_name() const {
  if (path_ == HostPath::kRegistered) return "registered mapping";
  if (path_ == HostPath::kRing) return "pinned ring";
  std::size_t streamed = 0;
  std::size_t cached = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    if (parts_[i].streamed) streamed += parts_[i].bytes;
    if (cached_[i]) cached += parts_[i].bytes;
  }
  std::string name = "direct reads into a pinned ring";
  if (cached > 0)
    name += ", " + std::to_string(100 * cached / std::max(cached, streamed)) + " % through the page cache";
  return name;
}

void SlabSource::prepare(std::size_t index) {
  const SlabPart& part = parts_[index];
  Block& block = blocks_.at(part.block);
  std::call_once(block.prepared, [&] {
    {
      const Loan chunk(*this);
      slab_.verify_block(part.block, direct_ ? *direct_ : file_, chunk.memory().first(kPiece));
    }
    if (path_ == HostPath::kRegistered && part.streamed) register_block(part.block);
  });
}

// Blocks that the driver refuses go through the ring, unless registration was asked for.
void SlabSource::register_block(const std::string& id) {
  Block& block = blocks_.at(id);
  if (block.registration) return;
  block.registration = transfers_.register_memory(slab_.bytes(slab_.block(id)));
  if (block.registration || fall_back_) return;
  throw ConfigError({.where = "host_path",
                     .found = "registered, but the driver refuses to register the mapped slab",
                     .expected = "ring, direct or auto",
                     .advice = "raise the limit of locked memory (ulimit -l), or use another path"});
}

std::size_t SlabSource::pieces(std::size_t index) const {
  const SlabPart& part = parts_[index];
  if (path_ == HostPath::kRegistered && part.streamed) return 1;
  return (part.bytes + kPiece - 1) / kPiece;
}

void SlabSource::load(std::size_t index, std::size_t piece, std::byte* memory,
                      const std::function<void()>& before_copy) {
  const SlabPart& part = parts_[index];
  if (blocks_.at(part.block).registration) {
    before_copy();
    transfers_.copy(slab_.bytes(slab_.block(part.block)).data() + (part.offset - slab_.block(part.block).offset),
                    memory, part.bytes);
    return;
  }
  const RandomAccessFile& file = direct_ && !cached_[index] ? *direct_ : file_;
  const std::size_t first = piece * kPiece;
  const std::size_t last = pieces(index) == 1 ? part.bytes : std::min(part.bytes, first + kPiece);
  for (std::size_t begin = first; begin < last; begin += kPiece) {
    const std::size_t bytes = std::min(kPiece, last - begin);
    const std::uint64_t from = page_begin(part.offset + begin);
    const std::uint64_t to = page_end(part.offset + begin + bytes);
    const Loan chunk(*this);
    file.read(from, chunk.memory().first(to - from));
    before_copy();
    transfers_.copy(chunk.memory().data() + (part.offset + begin - from), memory + begin, bytes);
    transfers_.record(chunk.copied(), Stream::kCopy);
  }
}

}  // namespace squareq
