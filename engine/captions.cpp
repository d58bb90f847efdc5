#include "engine/captions.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "kernels/base/random.h"

namespace squareq {
namespace {

std::vector<std::string> tags_of(const std::string& caption) {
  constexpr const char* kSpace = " \t\r\n\f\v";
  std::vector<std::string> tags;
  for (std::size_t begin = 0; begin <= caption.size();) {
    const std::size_t end = std::min(caption.find(',', begin), caption.size());
    const std::size_t first = std::min(caption.find_first_not_of(kSpace, begin), end);
    if (first < end) {
      const std::size_t last = caption.find_last_not_of(kSpace, end - 1);
      tags.push_back(caption.substr(first, last - first + 1));
    }
    begin = end + 1;
  }
  return tags;
}

std::string with_trigger(std::string text, const std::string& trigger) {
  constexpr std::string_view kPlace = "[trigger]";
  if (trigger.empty()) return text;
  for (auto at = text.find(kPlace); at != std::string::npos; at = text.find(kPlace, at + trigger.size())) {
    text.replace(at, kPlace.size(), trigger);
  }
  if (text.find(trigger) != std::string::npos) return text;
  return text.empty() ? trigger : trigger + ", " + text;
}

}  // namespace

std::vector<std::string> caption_texts(const FolderConfig& folder, const std::string& caption, std::uint64_t seed,
                                       std::uint32_t picture) {
  const std::string trigger = folder.regularisation ? "" : folder.trigger;
  const auto finished = [&](const std::string& text) {
    return folder.prefix + with_trigger(text, trigger) + folder.suffix;
  };
  if (folder.tag_orders == 0) return {finished(caption)};
  const std::vector<std::string> tags = tags_of(caption);
  const auto kept =
      static_cast<std::uint32_t>(std::min<std::size_t>(tags.size(), static_cast<std::size_t>(folder.keep_tags)));
  std::vector<std::string> texts;
  for (std::int64_t order = 0; order < folder.tag_orders; ++order) {
    std::vector<std::string> shuffled = tags;
    Random random(
        {.seed = seed, .purpose = Purpose::kTagOrder, .step = static_cast<std::uint32_t>(order), .sample = picture});
    for (auto i = static_cast<std::uint32_t>(tags.size()); i > kept + 1; --i) {
      std::swap(shuffled[i - 1], shuffled[kept + random.below(i - kept)]);
    }
    texts.push_back(finished(fmt::format("{}", fmt::join(shuffled, ", "))));
  }
  return texts;
}

}  // namespace squareq
