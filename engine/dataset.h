// The training data: a folder of images, each with a caption in a .txt file of the same stem.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "io/image.h"

namespace squareq {

struct Example {
  std::string image;    // path of the picture
  std::string caption;  // text of the caption file: valid UTF-8, surrounding white space and byte-order mark removed
};

// Lists `folder`: every file ending in .png, .jpg, .jpeg or .bmp (any case), in order of the bytes of the file name.
// Hidden files are ignored and subfolders are not entered. Throws FileError if the folder or a caption cannot be read
// or no picture is there; FormatError if a caption is not UTF-8 (the message has the byte offset) or longer than
// kCaptionLimit bytes, or if two pictures share one caption file.
std::vector<Example> read_dataset(const std::string& folder);

constexpr std::int64_t kCaptionLimit = 64 * 1024;

// The picture scaled to cover `resolution` (width, height) and cropped around its centre. Throws what read_image
// throws.
Image load_picture(const Example& example, std::array<std::int64_t, 2> resolution);

// Which of `count` examples is the `global_sample`-th one drawn in a run, counting from 0 over all batches: epoch
// e = global_sample / count walks a permutation of all examples, shuffled by Fisher and Yates with the numbers of
// Random{seed, Purpose::kShuffle, step = e}: start from 0, 1, .., count - 1; for i = count - 1 down to 1 swap entries i
// and below(i + 1). The result is entry global_sample % count. A pure function, so a resumed run continues the order.
std::uint32_t sample_index(std::uint64_t seed, std::uint64_t global_sample, std::uint32_t count);

}  // namespace squareq
