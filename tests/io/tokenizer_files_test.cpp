#include "io/tokenizer_files.h"

#include <functional>

#include "io/token_cases.h"
#include "io/tokenizer_json.h"
#include "kernels/base/error.h"
#include "tests/catch.h"
#include "tests/support.h"

using namespace squareq;
using test::contains;
using test::message_of;

namespace {

const std::string kT5 = ASSETS "/FLUX-mini/tokenizer_2";
const std::string kClip = ASSETS "/FLUX-mini/tokenizer";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

// What parsing says after one file changed.
std::string t5_message(const std::string& name, const std::string& from, const std::string& to) {
  TokenizerFiles files = read_tokenizer_files(kT5);
  files.texts[name] = replaced(files.texts.at(name), from, to);
  return message_of<FormatError>([&] { parse_t5_vocabulary(files); });
}

std::string clip_message(const std::string& name, const std::string& from, const std::string& to) {
  TokenizerFiles files = read_tokenizer_files(kClip);
  files.texts[name] = replaced(files.texts.at(name), from, to);
  return message_of<FormatError>([&] { parse_clip_vocabulary(files); });
}

}  // namespace

TEST_CASE("scores are read with two roundings, as Hugging Face reads them") {
  CHECK(tokenizer_score("-3.9410994052886963") == -0x1.f875f1fffffffp+1);
  CHECK(tokenizer_score("-7.2135233879089355") == -0x1.cdaa5e0000001p+2);
  CHECK(tokenizer_score("-7.2135233879089355") != -7.2135233879089355);
  CHECK(tokenizer_score("0.0") == 0.0);
  CHECK(tokenizer_score("-2") == -2.0);
  CHECK(tokenizer_score("1.5e-05") == 15.0 / 1e6);
  CHECK(tokenizer_score("25E+2") == 2500.0);
  CHECK(tokenizer_score("123456789012345678901234567890") == 12345678901234567890.0 * 1e10);
  CHECK(tokenizer_score("0.123456789012345678901234567890") == 12345678901234567890.0 / 1e20);
  CHECK(tokenizer_score("1e-400") == 0.0);
  CHECK(parse_tokenizer_json("[-7.2135233879089355]", "x")[0].get<double>() == -0x1.cdaa5e0000001p+2);
}

TEST_CASE("CLIP files become a vocabulary") {
  const ClipVocabulary vocabulary = read_clip_vocabulary(kClip);
  CHECK(vocabulary.ids.size() == 1026);
  CHECK(vocabulary.merges.size() == 512);
  CHECK(vocabulary.bos == 1024);
  CHECK(vocabulary.eos == 1025);
  CHECK(vocabulary.pad == 1025);
  CHECK(vocabulary.max_length == 77);
  REQUIRE(vocabulary.added.size() == 2);
  CHECK(vocabulary.added[0].normalized);
  CHECK_FALSE(vocabulary.added[1].normalized);

  SECTION("the two main files suffice") {
    TokenizerFiles files = read_tokenizer_files(kClip);
    files.texts.erase("tokenizer_config.json");
    files.texts.erase("special_tokens_map.json");
    const ClipVocabulary bare = parse_clip_vocabulary(files);
    CHECK(bare.bos == 1024);
    CHECK(bare.eos == 1025);
    CHECK(bare.added.size() == 2);
  }
  SECTION("tokenizer.json instead of them") {
    const TokenizerFiles files{"f", {{"tokenizer.json", R"({"added_tokens": [
        {"id": 3, "content": "<|startoftext|>", "normalized": true}, {"id": 4, "content": "<|endoftext|>"}],
      "model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {"a": 0, "b</w>": 1, "ab</w>": 2},
                "merges": ["a b</w>"]}})"}}};
    const ClipVocabulary single = parse_clip_vocabulary(files);
    CHECK(single.ids.at("ab</w>") == 2);
    CHECK(single.merges == std::vector<std::pair<std::string, std::string>>{{"a", "b</w>"}});
    CHECK(single.eos == 4);
  }
}

TEST_CASE("T5 files become a vocabulary") {
  const T5Vocabulary json = read_t5_vocabulary(kT5);
  CHECK(json.pieces.size() == 1024);
  CHECK(json.max_length == 32);
  CHECK(json.added.size() == 3);
  CHECK(json.prefix == T5Vocabulary::Prefix::kFirst);

  TokenizerFiles files = read_tokenizer_files(kT5);
  files.texts.erase("tokenizer.json");
  SECTION("spiece.model gives the same") {
    const T5Vocabulary model = parse_t5_vocabulary(files);
    CHECK(model.charsmap == json.charsmap);
    CHECK(model.unknown == json.unknown);
    REQUIRE(model.pieces.size() == json.pieces.size());
    size_t different = 0;
    for (size_t i = 0; i < model.pieces.size(); ++i) {
      different += model.pieces[i].text != json.pieces[i].text || model.pieces[i].score != json.pieces[i].score;
    }
    CHECK(different == 0);
  }
  SECTION("spiece.model alone has Hugging Face's sentinels") {
    files.texts.erase("tokenizer_config.json");
    files.texts.erase("special_tokens_map.json");
    const T5Vocabulary model = parse_t5_vocabulary(files);
    REQUIRE(model.pieces.size() == 1124);
    CHECK(model.pieces.back().text == "<extra_id_0>");
    CHECK(model.added.size() == 103);
    CHECK(model.max_length == 512);
  }
  SECTION("a file without a length limit") {
    files.texts["tokenizer_config.json"] = R"({"model_max_length": 1000000000000000019884624838656, "extra_ids": 0})";
    CHECK(parse_t5_vocabulary(files).max_length == 512);
  }
}

TEST_CASE("complaints about tokenizer files name file and field") {
  CHECK(contains(t5_message("tokenizer.json", "\"Unigram\"", "\"BPE\""), kT5 + "/tokenizer.json: model.type"));
  CHECK(contains(t5_message("tokenizer.json", "\"vocab\"", "\"vocabulary\""), "model.vocab"));
  CHECK(contains(t5_message("tokenizer.json", "\"unk_id\": 2", "\"unk_id\": -2"), "model.unk_id"));
  CHECK(contains(t5_message("tokenizer.json", "\"Precompiled\"", "\"Uppercase\""), "normalizer.normalizers[0].type"));
  CHECK(contains(t5_message("tokenizer.json", "\"precompiled_charsmap\": \"A", "\"precompiled_charsmap\": \"!"),
                 "precompiled_charsmap"));
  CHECK(contains(t5_message("tokenizer.json", "\"Metaspace\"", "\"Digits\""), "pre_tokenizer.type"));
  CHECK(contains(t5_message("tokenizer.json", "{", "["), "tokenizer.json"));
  CHECK(contains(t5_message("tokenizer_config.json", "\"model_max_length\": 32", "\"model_max_length\": \"32\""),
                 "tokenizer_config.json: model_max_length"));
  CHECK(contains(t5_message("tokenizer_config.json", "\"model_max_length\": 32", "\"model_max_length\": 1"),
                 "at least 2"));
  CHECK(contains(t5_message("tokenizer_config.json", "\"1\": {", "\"9\": {"), "added_tokens_decoder.9"));
  CHECK(
      contains(t5_message("tokenizer_config.json", "\"eos_token\": \"</s>\"", "\"eos_token\": \"</z>\""), "eos_token"));
  CHECK(contains(clip_message("vocab.json", ": 5,", ": -5,"), kClip + "/vocab.json: '"));
  CHECK(contains(clip_message("merges.txt", "r o", "r-o"), kClip + "/merges.txt: line 2"));
  CHECK(contains(clip_message("merges.txt", "r o", "r o o"), "'r o o'"));
  CHECK(contains(message_of<FileError>([] { read_tokenizer_files("/no/such/folder"); }), "/no/such/folder"));
  const TokenizerFiles none{"empty", {}};
  CHECK(contains(message_of<FormatError>([&] { parse_clip_vocabulary(none); }), "vocab.json"));
  CHECK(contains(message_of<FormatError>([&] { parse_t5_vocabulary(none); }), "spiece.model"));
  CHECK(contains(message_of<FormatError>([] { parse_tokenizer_json(std::string(100000, '['), "deep.json"); }), "64"));
}

TEST_CASE("a cut spiece.model is refused or lacks its end, never read past") {
  TokenizerFiles files = read_tokenizer_files(kT5);
  files.texts.erase("tokenizer.json");
  const std::string whole = files.texts.at("spiece.model");
  size_t refused = 0;
  for (size_t length = 0; length < whole.size(); length = length < 200 ? length + 1 : length * 5 / 4) {
    files.texts["spiece.model"] = whole.substr(0, length);
    refused += !message_of<FormatError>([&] { parse_t5_vocabulary(files); }).empty();
  }
  CHECK(refused > 190);
  files.texts["spiece.model"] = std::string("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 11);
  CHECK(contains(message_of<FormatError>([&] { parse_t5_vocabulary(files); }), "spiece.model"));
}

TEST_CASE("recorded token ids are read") {
  const test::TempDir folder;
  const std::string path = folder.file("tokens.json");
  test::write_file(path, R"([{"text": "a", "t5": [3, 1], "clip": []}])");
  const std::vector<TokenCase> cases = read_token_cases(path);
  REQUIRE(cases.size() == 1);
  CHECK(cases[0].t5 == std::vector<int32_t>{3, 1});
  test::write_file(path, R"([{"text": "a", "t5": ["x"], "clip": []}])");
  CHECK(contains(message_of<FormatError>([&] { read_token_cases(path); }), "[0].t5[0]"));
}
