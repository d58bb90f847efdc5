// Captions of pictures: one text file each, or a table of all in metadata.jsonl.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace squareq {

constexpr std::int64_t kCaptionLimit = 64 * 1024;  // bytes

// The text of a caption file without surrounding white space and byte-order mark. Throws FileError if it cannot be
// read, FormatError if it is not UTF-8 (with the byte offset) or longer than kCaptionLimit.
std::string read_caption(const std::string& path);

// Captions by file name from lines such as {"file_name": "a.png", "text": "a frog"}, as Hugging Face's image folders
// have them; "caption" may stand for "text", other names are ignored, and so are empty lines. Throws FileError, and
// FormatError naming the line that is no such object, names a file twice, or has a caption that is too long.
std::map<std::string, std::string> read_caption_table(const std::string& path);

}  // namespace squareq
