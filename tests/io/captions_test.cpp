#include "io/captions.h"

#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using squareq::test::contains;
using squareq::test::message_of;
using squareq::test::TempDir;
using squareq::test::write_file;

TEST_CASE("captions: must be UTF-8, and not too long") {
  const TempDir folder;
  const std::string path = folder.file("a.txt");
  const auto message = [&](const std::string& caption) {
    write_file(path, caption);
    return message_of<FormatError>([&] { read_caption(path); });
  };
  CHECK(contains(message("caf\xE9 au lait"), "a.txt: found byte 0xE9 at offset 3, which is not UTF-8"));
  CHECK(contains(message("\xFF\xFE"
                         "a\0"),
                 "byte 0xFF at offset 0"));
  CHECK(contains(message("ab\x80"), "offset 2"));
  CHECK(contains(message("ab\xC3"), "offset 2"));            // cut off
  CHECK(contains(message("\xC0\xAF"), "offset 0"));          // longer than needed
  CHECK(contains(message("\xE0\x80\xAF"), "offset 0"));      // longer than needed
  CHECK(contains(message("\xF0\x80\x80\xAF"), "offset 0"));  // longer than needed
  CHECK(contains(message("x\xED\xA0\x80"), "offset 1"));     // surrogate
  CHECK(contains(message("\xF4\x90\x80\x80"), "offset 0"));  // above U+10FFFF
  CHECK(contains(message("\xF0\x9F\x98"), "offset 0"));      // cut off
  CHECK(message("\xF0\x9F\x98\x80 \xE6\x97\xA5\xEF\xBF\xBD").empty());
  CHECK(message(std::string(static_cast<std::size_t>(kCaptionLimit), 'a')).empty());
  CHECK(contains(message(std::string(static_cast<std::size_t>(kCaptionLimit) + 1, 'a')), "65537 bytes"));
  write_file(path, "\xEF\xBB\xBF \t two\nlines \r\n");
  CHECK(read_caption(path) == "two\nlines");
}

TEST_CASE("captions: a table of all") {
  const TempDir folder;
  const std::string path = folder.file("metadata.jsonl");
  write_file(path,
             "{\"file_name\": \"a.png\", \"text\": \" a frog \", \"width\": 3}\r\n\n"
             "{\"file_name\": \"b.png\", \"caption\": \"\"}");
  CHECK(read_caption_table(path) == std::map<std::string, std::string>{{"a.png", "a frog"}, {"b.png", ""}});
  const auto message = [&](const std::string& line) {
    write_file(path, "{\"file_name\": \"a.png\", \"text\": \"\"}\n" + line);
    return message_of<FormatError>([&] { read_caption_table(path); });
  };
  for (const char* bad :
       {"nothing", "[]", "3", "{\"file_name\": \"b\"}", "{\"text\": \"b\"}", "{\"file_name\": 1, \"text\": \"\"}",
        "{\"file_name\": \"b\", \"text\": \"\xFF\"}", "{\"file_name\": \"b\", \"text\": \"\"} x"}) {
    INFO(bad);
    CHECK(contains(message(bad), "metadata.jsonl: line 2: found no caption"));
  }
  CHECK(contains(message("{\"file_name\": \"a.png\", \"text\": \"b\"}"), "a second caption of 'a.png'"));
  CHECK(contains(message("{\"file_name\": \"b\", \"text\": \"" + std::string(70'000, 'a') + "\"}"), "70000 bytes"));
  CHECK_FALSE(message(std::string(100'000, '[')).empty());
}
