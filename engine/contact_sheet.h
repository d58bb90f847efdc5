// Many pictures in one, to compare them: previews of a run by step and prompt, or samples of a data set.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "io/image.h"

namespace squareq {

struct SheetRow {
  std::string label;               // digits, letters, space and "-.:/"; drawn in capitals in front of the row
  std::vector<std::string> files;  // pictures from left to right; an empty name leaves its place empty
};

// A grid of the rows, each picture scaled to fit a square of `side` pixels (at least 16) and centred in it. Pictures
// are read one at a time. A sheet that grows is made anew from the files it shows, so that it never has a row twice.
// `read` gives the picture of a file, in the order of the sheet; by default the whole of it.
// Throws FileError and FormatError for a picture that cannot be read, ConfigError for a sheet over 32768 pixels a side.
Image contact_sheet(
    const std::vector<SheetRow>& rows, int side,
    const std::function<Image(const std::string& file)>& read = [](const std::string& file) {
      return read_image(file);
    });

}  // namespace squareq
