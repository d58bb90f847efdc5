// A slab while it is made: the file `path`.partial and a journal of its finished blocks, from which an interrupted
// build goes on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/slab.h"

namespace squareq {

struct FinishedBlock {
  std::string id;
  std::string checksum;           // of its bytes in the file
  std::string source;             // hash of the weights it was made from
  std::vector<SlabLayer> layers;  // name and errors
};

class SlabDraft {
 public:
  // Opens or makes the draft of a file of `bytes` bytes. `key` stands for everything the bytes depend on: what a draft
  // with another key has finished is thrown away. Throws FileError if the folder cannot be written, has no room, or
  // another process works on the draft.
  SlabDraft(std::string path, const std::string& key, std::uint64_t bytes);
  ~SlabDraft();
  SlabDraft(const SlabDraft&) = delete;
  SlabDraft& operator=(const SlabDraft&) = delete;

  // The journal of earlier builds. What it says about the file must be checked (checksum), since a power failure may
  // have lost data that was written before the entry.
  const std::vector<FinishedBlock>& finished() const { return finished_; }
  // Forgets the entries from number `count` on.
  void keep_finished(std::size_t count);

  void write(std::uint64_t offset, std::span<const std::byte> data);  // from any thread
  std::string checksum(std::uint64_t offset, std::uint64_t bytes) const;
  void finish(const FinishedBlock& block);

  // Makes everything durable and gives the file its name.
  void commit();
  // Removes draft and journal.
  void discard();

 private:
  [[noreturn]] void fail(int error) const;
  void reserve(std::uint64_t bytes);
  void read_journal(const std::string& key);
  void write_journal(const std::string& lines);

  std::string path_;
  std::string partial_;
  std::string journal_path_;
  std::string key_;
  int file_ = -1;
  int journal_ = -1;
  std::vector<FinishedBlock> finished_;
};

}  // namespace squareq
