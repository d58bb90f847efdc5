// From a caption as its file has it to the texts that the model is trained on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/config.h"

namespace squareq {

// The texts that stand for a caption: one, or `tag_orders` different ones, numbered from 0.
// Order v of the tags (what commas separate, white space around them removed, joined again by ", "): the first
// keep_tags stay, the others are shuffled by Fisher and Yates with the numbers of Random{seed, Purpose::kTagOrder,
// step = v, sample = picture}, `picture` being its number in the dataset. The trigger word then replaces every
// "[trigger]"; if the text does not have it after that, "trigger, " is put before it. Prefix and suffix come last.
std::vector<std::string> caption_texts(const FolderConfig& folder, const std::string& caption, std::uint64_t seed,
                                       std::uint32_t picture);

}  // namespace squareq
