// JSON of tokenizer files, with numbers read the way Hugging Face's reader reads them.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace squareq {

// Parses JSON text into a tree in which every number with a point or an exponent went through tokenizer_score.
// Throws FormatError (naming `where`) for text that is not JSON or nests deeper than 64 levels.
nlohmann::json parse_tokenizer_json(std::string_view text, const std::string& where);

// A JSON number as serde_json computes it: all digits without the point as one integer, rounded to double, then
// multiplied or divided by a power of ten. It differs from the correctly rounded value in the last bit now and then,
// and exact ties between segmentations hang on that bit. Digits beyond 64 bits are dropped, as there.
double tokenizer_score(std::string_view number);

// A JSON value together with where it stands ("f/tokenizer.json: model.vocab[3]"), so that every complaint can say so.
// The accessors throw FormatError when the value is absent or of another type.
class JsonNode {
 public:
  // value may be null: absent. It must outlive the node.
  JsonNode(const nlohmann::json* value, std::string where) : value_(value), where_(std::move(where)) {}

  [[noreturn]] void refuse(const std::string& expected, const std::string& advice = "") const;
  const std::string& where() const { return where_; }
  bool present() const { return value_ && !value_->is_null(); }  // null counts as absent
  bool is_text() const { return present() && value_->is_string(); }
  bool is_array() const { return present() && value_->is_array(); }

  JsonNode operator[](const std::string& key) const;  // absent in what is absent
  const nlohmann::json& object() const;
  size_t size() const;          // of an array
  JsonNode at(size_t i) const;  // i < size()
  const std::string& text() const;
  bool flag(bool absent) const;
  double number() const;
  int32_t id() const;  // an integer from 0 to 2^24 - 1

 private:
  const nlohmann::json* value_;
  std::string where_;
};

}  // namespace squareq
