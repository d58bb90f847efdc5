#include "io/slab_draft.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <system_error>
#include <utility>

#include "io/file.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

using Json = nlohmann::json;

std::string journal_line(const FinishedBlock& block) {
  Json layers = Json::array();
  for (const SlabLayer& layer : block.layers) {
    layers.push_back({layer.name, layer.relative_l2, layer.cosine, layer.max_abs});
  }
  return Json{{"id", block.id}, {"checksum", block.checksum}, {"source", block.source}, {"layers", layers}}.dump() +
         "\n";
}

FinishedBlock parse_line(const std::string& line) {
  const Json json = Json::parse(line);
  FinishedBlock block{json.at("id").get<std::string>(),
                      json.at("checksum").get<std::string>(),
                      json.at("source").get<std::string>(),
                      {}};
  for (const Json& layer : json.at("layers")) {
    block.layers.push_back({.name = layer.at(0).get<std::string>(),
                            .relative_l2 = layer.at(1).get<double>(),
                            .cosine = layer.at(2).get<double>(),
                            .max_abs = layer.at(3).get<double>()});
  }
  return block;
}

}  // namespace

SlabDraft::SlabDraft(std::string path, const std::string& key, std::uint64_t bytes)
    : path_(std::move(path)), partial_(path_ + ".partial"), journal_path_(partial_ + ".journal"), key_(key) {
  std::error_code ignored;
  if (path_.empty() || std::filesystem::is_directory(path_, ignored)) {
    throw FileError({path_, "a folder", "a file to write", ""});
  }
  try {
    file_ = open(partial_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file_ < 0) fail(errno);
    if (flock(file_, LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) fail(errno);
      throw FileError({path_, "another process that is writing it", "", "wait for it or write somewhere else"});
    }
    journal_ = open(journal_path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (journal_ < 0) fail(errno);
    read_journal(key);
    reserve(bytes);
  } catch (...) {
    if (journal_ >= 0) close(journal_);
    if (file_ >= 0) close(file_);
    throw;
  }
}

SlabDraft::~SlabDraft() {
  close(journal_);
  close(file_);
}

void SlabDraft::fail(int error) const {
  std::string advice;
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) {
    advice = "free some disk space and start again: the build goes on where it stopped";
  }
  if (error == EACCES || error == EROFS || error == ENOENT || error == ENOTDIR) {
    advice = "check that the folder exists and can be written";
  }
  throw FileError({path_, std::generic_category().message(error), "to write the file", advice});
}

void SlabDraft::reserve(std::uint64_t bytes) {
  struct stat status {};
  if (fstat(file_, &status) != 0) fail(errno);
  const auto allocated = static_cast<std::uint64_t>(status.st_blocks) * 512;
  struct statvfs room {};
  if (fstatvfs(file_, &room) == 0) {
    const std::uint64_t available = std::uint64_t{room.f_bavail} * room.f_frsize + allocated;
    if (available < bytes) {
      if (finished_.empty()) discard();
      throw FileError({path_, fmt::format("{:.2f} GB of free disk space", static_cast<double>(available) * 1e-9),
                       fmt::format("{:.2f} GB", static_cast<double>(bytes) * 1e-9),
                       "free some disk space or write somewhere else"});
    }
  }
  if (ftruncate(file_, static_cast<off_t>(bytes)) != 0) fail(errno);
}

void SlabDraft::read_journal(const std::string& key) {
  std::istringstream text(read_text(journal_path_));
  std::string line;
  if (std::getline(text, line) && line == key && !text.eof()) {
    try {
      while (std::getline(text, line) && !text.eof()) finished_.push_back(parse_line(line));
    } catch (const Json::exception&) {
      // A line that was cut by the interruption ends the journal.
    }
  } else if (ftruncate(file_, 0) != 0) {
    fail(errno);
  }
  keep_finished(finished_.size());
}

void SlabDraft::keep_finished(std::size_t count) {
  finished_.resize(std::min(count, finished_.size()));
  if (ftruncate(journal_, 0) != 0 || lseek(journal_, 0, SEEK_SET) < 0) fail(errno);
  std::string lines = key_ + "\n";
  for (const FinishedBlock& block : finished_) lines += journal_line(block);
  write_journal(lines);
}

void SlabDraft::write_journal(const std::string& lines) {
  for (std::size_t done = 0; done < lines.size();) {
    const ssize_t written = ::write(journal_, lines.data() + done, lines.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail(written == 0 ? EIO : errno);
    done += static_cast<std::size_t>(written);
  }
}

void SlabDraft::write(std::uint64_t offset, std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t written = pwrite(file_, data.data(), data.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail(written == 0 ? EIO : errno);
    offset += static_cast<std::uint64_t>(written);
    data = data.subspan(static_cast<std::size_t>(written));
  }
}

std::string SlabDraft::checksum(std::uint64_t offset, std::uint64_t bytes) const {
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(), XXH3_freeState);
  if (state == nullptr) throw std::bad_alloc();
  XXH3_128bits_reset(state.get());
  std::vector<std::byte> buffer(std::size_t{1} << 20U);
  while (bytes > 0) {
    const std::size_t wanted = std::min<std::uint64_t>(bytes, buffer.size());
    const ssize_t got = pread(file_, buffer.data(), wanted, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) fail(got == 0 ? EIO : errno);
    XXH3_128bits_update(state.get(), buffer.data(), static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
    bytes -= static_cast<std::uint64_t>(got);
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

void SlabDraft::finish(const FinishedBlock& block) {
  write_journal(journal_line(block));
  finished_.push_back(block);
}

void SlabDraft::commit() {
  if (fsync(file_) != 0) fail(errno);
  if (std::rename(partial_.c_str(), path_.c_str()) != 0) fail(errno);
  unlink(journal_path_.c_str());
  sync_folder_of(path_);
}

void SlabDraft::discard() {
  unlink(partial_.c_str());
  unlink(journal_path_.c_str());
}

}  // namespace squareq
