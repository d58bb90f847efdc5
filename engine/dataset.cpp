#include "engine/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <numeric>
#include <optional>
#include <string_view>
#include <utility>

#include "io/file.h"
#include "kernels/base/error.h"
#include "kernels/base/random.h"

namespace squareq {
namespace {

namespace fs = std::filesystem;

// Offset of the first byte that does not belong to valid UTF-8 (RFC 3629: shortest forms, no surrogates, up to
// U+10FFFF).
std::optional<std::size_t> first_invalid_utf8(std::string_view text) {
  const auto byte = [&](std::size_t i) -> unsigned {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U;
  };
  const auto follows = [&](std::size_t i, unsigned low = 0x80, unsigned high = 0xBF) {
    return byte(i) >= low && byte(i) <= high;
  };
  for (std::size_t i = 0; i < text.size();) {
    const unsigned lead = byte(i);
    std::size_t length = 0;
    if (lead < 0x80) {
      length = 1;
    } else if (lead >= 0xC2 && lead <= 0xDF) {
      length = follows(i + 1) ? 2 : 0;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
      const bool second = follows(i + 1, lead == 0xE0 ? 0xA0 : 0x80, lead == 0xED ? 0x9F : 0xBF);
      length = second && follows(i + 2) ? 3 : 0;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
      const bool second = follows(i + 1, lead == 0xF0 ? 0x90 : 0x80, lead == 0xF4 ? 0x8F : 0xBF);
      length = second && follows(i + 2) && follows(i + 3) ? 4 : 0;
    }
    if (length == 0) return i;
    i += length;
  }
  return std::nullopt;
}

std::string trimmed(std::string_view text) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  constexpr std::string_view kSpace = " \t\r\n\f\v";
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  const std::size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(kSpace) - begin + 1));
}

std::string read_caption(const fs::path& image) {
  const fs::path path = fs::path(image).replace_extension(".txt");
  std::error_code error;
  if (!fs::is_regular_file(path, error)) {
    throw FileError({image.string(), "no caption file", path.filename().string(),
                     "write the caption there; an empty file is an empty caption"});
  }
  const auto size = fs::file_size(path, error);
  if (!error && size > static_cast<std::uintmax_t>(kCaptionLimit)) {
    throw FormatError({path.string(), fmt::format("a caption of {} bytes", size),
                       fmt::format("at most {} bytes", kCaptionLimit), ""});
  }
  const std::string text = read_text(path.string());
  if (const auto offset = first_invalid_utf8(text)) {
    throw FormatError({path.string(),
                       fmt::format("byte 0x{:02X} at offset {}, which is not UTF-8",
                                   static_cast<unsigned char>(text[*offset]), *offset),
                       "UTF-8 text", "save the caption as UTF-8"});
  }
  return trimmed(text);
}

bool is_picture(const fs::path& path) {
  std::string extension = path.extension().string();
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return extension == ".png" || extension == ".jpg" || extension == ".jpeg" || extension == ".bmp";
}

// Paths of the pictures in `folder`, in order of file name.
std::vector<fs::path> list_pictures(const std::string& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw FileError({folder, error ? error.message() : std::string("no folder"), "a folder of pictures and captions",
                     "set data.folder"});
  }
  std::vector<fs::path> pictures;
  fs::directory_iterator entry(folder, error);
  while (!error && entry != fs::directory_iterator()) {
    const fs::path& path = entry->path();
    std::error_code unreadable;  // a link that leads nowhere or in a circle is no regular file
    const bool hidden = path.filename().string().starts_with(".");
    if (!hidden && is_picture(path) && entry->is_regular_file(unreadable)) pictures.push_back(path);
    entry.increment(error);
  }
  if (error) throw FileError({folder, error.message(), "a readable folder", ""});
  if (pictures.empty()) {
    throw FileError({folder, "no picture", "files ending in .png, .jpg, .jpeg or .bmp",
                     "check data.folder; subfolders are not entered"});
  }
  std::sort(pictures.begin(), pictures.end(),
            [](const fs::path& a, const fs::path& b) { return a.filename().string() < b.filename().string(); });
  return pictures;
}

}  // namespace

std::vector<Example> read_dataset(const std::string& folder) {
  std::vector<Example> examples;
  std::vector<std::pair<std::string, std::string>> stems;  // stem, file name
  for (const fs::path& path : list_pictures(folder)) {
    stems.emplace_back(path.stem().string(), path.filename().string());
    examples.push_back({path.string(), read_caption(path)});
  }
  std::sort(stems.begin(), stems.end());
  const auto twin = std::adjacent_find(stems.begin(), stems.end(), [](auto& a, auto& b) { return a.first == b.first; });
  if (twin != stems.end()) {
    throw FormatError({folder,
                       fmt::format("'{}' and '{}', which share the caption '{}.txt'", twin->second,
                                   std::next(twin)->second, twin->first),
                       "a caption of its own for every picture", "rename one of them"});
  }
  return examples;
}

Image load_picture(const Example& example, std::array<std::int64_t, 2> resolution) {
  return resize_and_crop(read_image(example.image), static_cast<int>(resolution[0]), static_cast<int>(resolution[1]));
}

std::uint32_t sample_index(std::uint64_t seed, std::uint64_t global_sample, std::uint32_t count) {
  if (count == 0) throw std::logic_error("sample_index: no examples");
  const auto epoch = static_cast<std::uint32_t>(global_sample / count);
  Random random({.seed = seed, .purpose = Purpose::kShuffle, .step = epoch});
  std::vector<std::uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0U);
  for (std::uint32_t i = count - 1; i > 0; --i) std::swap(order[i], order[random.below(i + 1)]);
  return order[global_sample % count];
}

}  // namespace squareq
