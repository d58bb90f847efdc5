#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "io/safetensors.h"
#include "io/token_cases.h"
#include "io/tokenizer_files.h"
#include "kernels/base/error.h"
#include "kernels/base/random.h"
#include "model/text/charsmap.h"
#include "model/text/clip_tokenizer.h"
#include "model/text/t5_tokenizer.h"
#include "model/text/unicode.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using test::contains;
using test::message_of;
using Ids = std::vector<int32_t>;

namespace {

const std::string kMini = ASSETS "/FLUX-mini";

const ClipTokenizer& mini_clip() {
  static const ClipTokenizer tokenizer(read_clip_vocabulary(kMini + "/tokenizer"));
  return tokenizer;
}

const T5Tokenizer& mini_t5() {
  static const T5Tokenizer tokenizer(read_t5_vocabulary(kMini + "/tokenizer_2"));
  return tokenizer;
}

// The miniature's T5 tokenizer from spiece.model alone.
T5Vocabulary mini_t5_from_sentencepiece() {
  TokenizerFiles files = read_tokenizer_files(kMini + "/tokenizer_2");
  files.texts.erase("tokenizer.json");
  return parse_t5_vocabulary(files);
}

Ids row(const SafetensorsFile& file, const std::string& name, size_t index) {
  const TensorInfo& tensor = file.get(name);
  REQUIRE(tensor.dtype == DType::I32);
  Ids ids(static_cast<size_t>(tensor.shape.at(1)));
  REQUIRE(index < static_cast<size_t>(tensor.shape.at(0)));
  std::memcpy(ids.data(), file.data(tensor).data() + index * ids.size() * 4, ids.size() * 4);
  return ids;
}

// Words, any bytes, and characters from scripts, marks and emoji, in turn.
std::string random_prompt(uint32_t number) {
  Random random({.seed = 7, .purpose = Purpose::kTest, .sample = number});
  const char32_t begins[] = {0x20, 0x300, 0x3B1, 0x5D0, 0x905, 0xE01, 0x1100, 0x2000, 0x3040, 0x4E00, 0x1F300};
  std::string text;
  for (uint32_t i = 0, length = random.below(40); i < length; ++i) {
    if (random.below(12) == 0) {
      text += static_cast<char>(static_cast<uint8_t>(random.below(256)));
    } else {
      append_utf8(text, begins[random.below(std::size(begins))] + random.below(90));
    }
  }
  return text;
}

// Letters as single-character pieces unless scores say otherwise.
T5Vocabulary small_t5(std::vector<T5Vocabulary::Piece> pieces) {
  T5Vocabulary vocabulary;
  vocabulary.pieces = {{"<pad>", 0.0}, {"</s>", 0.0}, {"<unk>", 0.0}};
  vocabulary.pieces.insert(vocabulary.pieces.end(), pieces.begin(), pieces.end());
  vocabulary.prefix = T5Vocabulary::Prefix::kNever;
  return vocabulary;
}

}  // namespace

TEST_CASE("the miniature's recorded ids are reproduced") {
  const SafetensorsFile recorded(ASSETS "/FLUX-mini_io.safetensors");
  const auto check = [&](const std::string& prompts_key, const std::string& prefix) {
    const auto prompts = nlohmann::json::parse(recorded.metadata().at(prompts_key)).get<std::vector<std::string>>();
    REQUIRE(prompts.size() >= 3);
    for (size_t i = 0; i < prompts.size(); ++i) {
      CHECK(mini_clip().encode_padded(prompts[i]) == row(recorded, prefix + "clip_ids", i));
      CHECK(mini_t5().pad(mini_t5().encode(prompts[i])) == row(recorded, prefix + "t5_ids", i));
    }
  };
  check("prompts", "");
  check("train_captions", "train_");
}

TEST_CASE("ids of the real tokenizers equal Hugging Face's") {
  const char* folder = std::getenv("SQUAREQ_FLUX_DEV");
  if (!folder || !*folder) {
    WARN("SQUAREQ_FLUX_DEV does not name a FLUX.1-dev folder: its tokenizers are not compared");
    return;
  }
  const ClipTokenizer clip(read_clip_vocabulary(std::string(folder) + "/tokenizer"));
  const T5Tokenizer t5(read_t5_vocabulary(std::string(folder) + "/tokenizer_2"));
  CHECK(t5.max_length() == 512);
  const std::vector<TokenCase> cases = read_token_cases(TEST_DATA "/golden/tokens.json");
  REQUIRE(cases.size() == 161);
  for (const TokenCase& recorded : cases) {
    CAPTURE(recorded.text);
    CHECK(clip.encode(recorded.text) == recorded.clip);
    CHECK(t5.encode(recorded.text, 1 << 20) == recorded.t5);
  }
}

TEST_CASE("tokenizer.json and spiece.model give the same ids") {
  const T5Tokenizer other(mini_t5_from_sentencepiece());
  for (uint32_t i = 0; i < 500; ++i) {
    const std::string prompt = random_prompt(i);
    CAPTURE(prompt);
    CHECK(other.encode(prompt, 1000) == mini_t5().encode(prompt, 1000));
  }
}

TEST_CASE("any bytes are a prompt") {
  for (uint32_t i = 0; i < 500; ++i) {
    const Ids ids = mini_clip().encode(random_prompt(i));
    CHECK(ids.size() <= 77);
    CHECK(ids.front() == mini_clip().bos());
    CHECK(ids.back() == mini_clip().eos());
  }
  CHECK(valid_utf8("a\xC3\xA9\xFF\xE2\x96") == "a\xC3\xA9\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(valid_utf8("\xED\xA0\x80") == "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(mini_clip().encode("a\xFF") == mini_clip().encode("a\xEF\xBF\xBD"));
  CHECK(mini_t5().encode("a\xFF") == mini_t5().encode("a\xEF\xBF\xBD"));
  CHECK(mini_clip().encode("") == Ids{mini_clip().bos(), mini_clip().eos()});
  CHECK(mini_t5().encode(" \t\n") == Ids{1});
}

TEST_CASE("CLIP splits and cleans as its rules say") {
  const auto same = [](const char* a, const char* b) { return mini_clip().encode(a) == mini_clip().encode(b); };
  CHECK(same("A  Cat\t\n", "a cat"));
  CHECK(same("it's", "it 's"));
  CHECK(same("a'll", "a 'll"));
  CHECK_FALSE(same("ab", "a b"));
  CHECK(same("12", "1 2"));
  CHECK(same("e\xCC\x81", "\xC3\xA9"));                                 // NFC
  CHECK(same("\xCE\xA3\xCE\x91\xCE\xA3", "\xCF\x83\xCE\xB1\xCF\x83"));  // no final sigma
  CHECK(same("\xC4\xB0", "i\xCC\x87"));                                 // dotted capital I becomes two
  CHECK_FALSE(same("\xF0\xAE\xAF\xB0y", "\xF0\xAE\xAF\xB0 y"));         // a letter since Unicode 15.1
  const Ids with_token = mini_clip().encode("a<|endoftext|>b<|STARTOFTEXT|>");
  const Ids a = mini_clip().encode("a");
  const Ids b = mini_clip().encode("b");
  CHECK(with_token == Ids{1024, a[1], 1025, b[1], 1024, 1025});
  CHECK(mini_clip().encode(std::string(500, '7')).size() == 77);
  CHECK(mini_clip().encode_padded("a").size() == 77);
}

TEST_CASE("T5 normalises by grapheme cluster") {
  const Charsmap charsmap(read_t5_vocabulary(kMini + "/tokenizer_2").charsmap);
  CHECK(charsmap.apply("o\xCC\x82\xCC\x81") == "\xC3\xB4");  // 5 bytes: the shortest match replaces the whole
  const std::string ga = "\xE3\x81\x8B\xE3\x82\x99";         // 6 bytes: each code point alone
  CHECK(charsmap.apply(ga) == ga);
  CHECK(charsmap.apply("\xEF\xBC\xA1\t\x01") == "A ");
  CHECK(Charsmap("").apply("\xEF\xBC\xA1") == "\xEF\xBC\xA1");
}

TEST_CASE("T5 segments by total score, first come first served") {
  const T5Tokenizer even(small_t5({{"a", -1}, {"b", -1}, {"ab", -2}, {"bc", -3}, {"c", -5}}));
  CHECK(even.encode("ab") == Ids{5, 1});      // a tie: the earlier start stays
  CHECK(even.encode("abc") == Ids{3, 6, 1});  // -4 against -7
  const T5Tokenizer long_is_better(small_t5({{"a", -1}, {"aa", -1.5}}));
  CHECK(long_is_better.encode("aaa") == Ids{3, 4, 1});        // a tie again
  CHECK(long_is_better.encode("xyzaxy") == Ids{2, 3, 2, 1});  // neighbouring unknowns are one
  CHECK(long_is_better.encode("aaaaaa", 3) == Ids{4, 4, 1});
  CHECK(long_is_better.pad({4, 1}, 5) == Ids{4, 1, 0, 0, 0});
}

TEST_CASE("added tokens are found before anything else") {
  T5Vocabulary vocabulary = small_t5({{"\xE2\x96\x81", -1}, {"a", -1}, {"b", -1}, {"<x>", 0}});
  vocabulary.prefix = T5Vocabulary::Prefix::kFirst;
  vocabulary.added = {{.text = "<x>", .id = 6}};
  SECTION("the word mark is for the beginning only") {
    const T5Tokenizer t5(vocabulary);
    CHECK(t5.encode("a<x>b") == Ids{3, 4, 6, 5, 1});
    CHECK(t5.encode("a <x> b") == Ids{3, 4, 6, 3, 5, 1});
    CHECK(t5.encode("<x>b") == Ids{6, 5, 1});
  }
  SECTION("a token may take whitespace along") {
    vocabulary.added[0].strip_left = vocabulary.added[0].strip_right = true;
    CHECK(T5Tokenizer(vocabulary).encode("a  <x>\t b") == Ids{3, 4, 6, 5, 1});
  }
  SECTION("the longest one counts") {
    vocabulary.added.push_back({.text = "<x>a", .id = 4});
    CHECK(T5Tokenizer(vocabulary).encode("<x>ab<x>") == Ids{4, 5, 6, 1});
  }
}

TEST_CASE("long prompts take linear time") {
  for (const char* unit : {"a", "-", " a", "\xE6\xBC\xA2", "\xF0\x9F\x91\xA8\xE2\x80\x8D"}) {
    std::string prompt;
    while (prompt.size() < 100000) prompt += unit;
    const auto begin = std::chrono::steady_clock::now();
    CHECK(mini_clip().encode(prompt).size() == 77);
    CHECK(!mini_t5().encode(prompt, 1 << 20).empty());
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(20));  // quadratic would be minutes
  }
}

TEST_CASE("vocabularies that cannot work are refused") {
  CHECK(contains(message_of<FormatError>([] {
                   ClipVocabulary clip = read_clip_vocabulary(kMini + "/tokenizer");
                   clip.merges.emplace_back("no such", "token");
                   ClipTokenizer{clip};
                 }),
                 "no such token"));
  const auto t5_message = [](auto change) {
    T5Vocabulary t5 = small_t5({{"a", -1}});
    change(t5);
    return message_of<FormatError>([&] { T5Tokenizer{t5}; });
  };
  CHECK(t5_message([](T5Vocabulary&) {}).empty());
  CHECK(contains(t5_message([](T5Vocabulary& t5) { t5.eos = 4; }), "end id"));
  CHECK(contains(t5_message([](T5Vocabulary& t5) { t5.unknown = -1; }), "unknown id"));
  CHECK(contains(t5_message([](T5Vocabulary& t5) { t5.charsmap = "\x10"; }), "charsmap"));
  CHECK(contains(t5_message([](T5Vocabulary& t5) { t5.charsmap = std::string("\x08\0\0\0abcd", 8); }), "charsmap"));
}
