#include "engine/identity.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels/base/error.h"

namespace squareq {

struct Sha256::Context {
  EVP_MD_CTX* handle = EVP_MD_CTX_new();
  Context() = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context() { EVP_MD_CTX_free(handle); }
};

namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kWholeBelow = std::uint64_t{64} << 20;
constexpr std::uint64_t kHead = std::uint64_t{4} << 20;
constexpr std::uint64_t kPage = std::uint64_t{64} << 10;
constexpr std::uint64_t kPages = 64;

void check(int ok) {
  if (ok != 1) throw std::runtime_error("SHA-256 failed in the crypto library");
}

// A file read in ranges; a short read is an error.
class Ranges {
 public:
  explicit Ranges(std::string path) : path_(std::move(path)) {
    std::error_code error;
    size_ = fs::file_size(path_, error);  // refuses what is no regular file before it is opened
    if (error) fail(error.message());
    file_.open(path_, std::ios::binary);
    if (!file_) fail(std::strerror(errno));
  }
  std::uint64_t size() const { return size_; }

  void add(std::uint64_t offset, std::uint64_t length, Sha256& hash) {
    std::vector<char> buffer(static_cast<std::size_t>(std::min<std::uint64_t>(length, 1 << 20)));
    file_.seekg(static_cast<std::streamoff>(offset));
    while (length > 0) {
      const auto now = static_cast<std::size_t>(std::min<std::uint64_t>(length, buffer.size()));
      if (!file_.read(buffer.data(), static_cast<std::streamsize>(now))) fail("an error while reading");
      hash.add({buffer.data(), now});
      length -= now;
    }
  }

 private:
  [[noreturn]] void fail(const std::string& found) const { throw FileError({path_, found, "a readable file", ""}); }

  std::string path_;
  std::ifstream file_;
  std::uint64_t size_ = 0;
};

std::string identity_of_file(const std::string& path) {
  Ranges file(path);
  Sha256 hash;
  hash.add(fmt::format("size {}\n", file.size()));
  if (file.size() < kWholeBelow) {
    file.add(0, file.size(), hash);
    return hash.hex();
  }
  file.add(0, kHead, hash);
  const std::uint64_t span = file.size() - kHead - kPage;
  for (std::uint64_t i = 0; i < kPages; ++i) {
    const std::uint64_t offset = span / (kPages - 1) * i + span % (kPages - 1) * i / (kPages - 1);
    file.add(kHead + offset, kPage, hash);
  }
  return hash.hex();
}

std::string identity_of_folder(const std::string& path) {
  std::vector<std::pair<std::string, std::string>> files;  // relative name, path
  std::error_code error;
  fs::recursive_directory_iterator entry(path, error);
  while (!error && entry != fs::recursive_directory_iterator()) {
    std::error_code unreadable;  // a link that leads nowhere is no file
    const bool hidden = entry->path().filename().string().starts_with(".");
    if (hidden) entry.disable_recursion_pending();
    if (!hidden && entry->is_regular_file(unreadable)) {
      files.emplace_back(entry->path().lexically_relative(path).generic_string(), entry->path().string());
    }
    entry.increment(error);
  }
  if (error) throw FileError({path, error.message(), "a readable folder", ""});
  std::sort(files.begin(), files.end());
  Sha256 hash;
  for (const auto& [name, file] : files) {
    hash.add(fmt::format("{}({})={}\n", name.size(), name, identity_of_file(file)));
  }
  return hash.hex();
}

}  // namespace

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  check(EVP_DigestInit_ex(context_->handle, EVP_sha256(), nullptr));
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::add(std::string_view bytes) { check(EVP_DigestUpdate(context_->handle, bytes.data(), bytes.size())); }

std::string Sha256::hex() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned length = 0;
  check(EVP_DigestFinal_ex(context_->handle, digest.data(), &length));
  std::string text;
  for (unsigned i = 0; i < length; ++i) text += fmt::format("{:02x}", digest[i]);
  return text;
}

std::string content_hash(std::string_view bytes) {
  Sha256 hash;
  hash.add(bytes);
  return hash.hex();
}

std::string file_hash(const std::string& path) {
  Ranges file(path);
  Sha256 hash;
  file.add(0, file.size(), hash);
  return hash.hex();
}

std::string model_identity(const std::string& path) {
  std::error_code error;
  return fs::is_directory(path, error) ? identity_of_folder(path) : identity_of_file(path);
}

std::string slab_identity(const Slab& slab) {
  std::string text;
  for (const auto& [name, value] : slab.metadata()) text.append(name).append("=").append(value).append("\n");
  return content_hash(text);
}

}  // namespace squareq
