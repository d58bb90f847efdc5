// The bytes of a slab on their way to the device: where from, and through which host memory.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/host_path.h"
#include "engine/prefetch_queue.h"
#include "io/random_access_file.h"
#include "io/slab.h"

namespace squareq {

// A run of whole tensors of one block.
struct SlabPart {
  std::string block;
  std::uint64_t offset = 0;  // in the file
  std::size_t bytes = 0;
  bool streamed = false;  // loaded again and again; others are loaded once, always through the ring
};

// Which streamed parts are read through the page cache if it holds `budget` bytes of them: evenly spread, so that fast
// and slow parts take turns.
std::vector<bool> cached_parts(const std::vector<SlabPart>& parts, std::size_t budget);

class SlabSource : public PartSource {
 public:
  // `page_cache`: how many bytes of the slab it can hold. Throws ConfigError if the path asked for does not work here,
  // FileError if the file cannot be read.
  SlabSource(const Slab& slab, Transfers& transfers, std::vector<SlabPart> parts, HostPath path, std::size_t readers,
             std::size_t page_cache);

  // What is used ("registered mapping", "direct reads into a pinned ring, 38 % through the page cache").
  std::string path_name() const;
  // Verifies the checksum of the part's block, and registers the block for that path.
  void prepare(std::size_t part) override;
  std::size_t pieces(std::size_t part) const override;
  void load(std::size_t part, std::size_t piece, std::byte* memory, const std::function<void()>& before_copy) override;

 private:
  struct Chunk {
    std::byte* memory = nullptr;
    std::unique_ptr<Event> copied;
  };
  struct Block {
    std::once_flag prepared;
    std::unique_ptr<Registration> registration;
  };
  class Loan;

  HostPath choose(HostPath wanted, std::size_t page_cache);
  void register_block(const std::string& id);

  const Slab& slab_;
  Transfers& transfers_;
  std::vector<SlabPart> parts_;
  RandomAccessFile file_;                   // through the page cache
  std::optional<RandomAccessFile> direct_;  // past it
  std::vector<bool> cached_;                // parts that are read from file_ though there is direct_
  HostPath path_;
  bool fall_back_;  // to the ring where the driver refuses to register a block
  std::map<std::string, Block> blocks_;
  Buffer ring_;
  std::mutex mutex_;
  std::condition_variable returned_;
  std::deque<Chunk> free_;  // the one whose copy was given longest ago first
};

}  // namespace squareq
