// How fast JPEG pictures become pixels, against libjpeg-turbo alone.
#pragma once

#include <string>
#include <vector>

namespace squareq::bench {

struct DecodeOptions {
  std::vector<std::string> files;  // JPEG
  int repeats = 5;
  int threads = 0;
};

// Prints megapixels a second on all threads: of the bare decoder into memory that is reused, of read_image, and of
// everything up to a crop of 1024 x 1024. 0 unless a file cannot be read.
int run_decode(const DecodeOptions& options, bool json);

}  // namespace squareq::bench
