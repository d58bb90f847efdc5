#include "io/tokenizer_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/error.h"

namespace squareq {
namespace {

using nlohmann::json;

// Builds the tree from parser events; nlohmann's own builder would round numbers correctly and drop their spelling.
class TreeBuilder : public nlohmann::json_sax<json> {
 public:
  json tree;
  std::string error;

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t, const string_t& spelling) override { return put(tokenizer_score(spelling)); }
  bool string(string_t& value) override { return put(std::move(value)); }
  bool binary(binary_t&) override { return fail("binary data"); }
  bool start_object(size_t) override { return open(json::object()); }
  bool start_array(size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& value) override {
    key_ = std::move(value);
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& exception) override {
    return fail(exception.what());
  }

 private:
  json* place(json value) {
    if (open_.empty()) return &(tree = std::move(value));
    json& parent = *open_.back();
    if (parent.is_object()) return &(parent[key_] = std::move(value));
    parent.push_back(std::move(value));
    return &parent.back();
  }
  bool put(json value) {
    place(std::move(value));
    return true;
  }
  bool open(json value) {
    constexpr size_t kDeepest = 64;
    if (open_.size() == kDeepest) return fail("more than 64 nested levels");
    open_.push_back(place(std::move(value)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }
  bool fail(std::string why) {
    error = std::move(why);
    return false;
  }

  std::vector<json*> open_;
  std::string key_;
};

}  // namespace

json parse_tokenizer_json(std::string_view text, const std::string& where) {
  TreeBuilder builder;
  if (!json::sax_parse(text.begin(), text.end(), &builder)) {
    throw FormatError({where, builder.error, "a JSON document", "download the tokenizer's files again"});
  }
  return std::move(builder.tree);
}

double tokenizer_score(std::string_view number) {
  constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();
  const bool negative = number.starts_with('-');
  uint64_t digits = 0;
  int64_t exponent = 0;
  bool point = false;
  bool full = false;
  size_t at = negative ? 1 : 0;
  for (; at < number.size() && (number[at] == '.' || (number[at] >= '0' && number[at] <= '9')); ++at) {
    if (number[at] == '.') {
      point = true;
      continue;
    }
    const auto digit = static_cast<uint64_t>(number[at] - '0');
    full = full || digits > (kMost - digit) / 10;
    if (!full) digits = digits * 10 + digit;
    exponent += (full && !point ? 1 : 0) - (!full && point ? 1 : 0);
  }
  if (at < number.size() && (number[at] == 'e' || number[at] == 'E')) {
    ++at;
    const bool down = at < number.size() && number[at] == '-';
    if (at < number.size() && (number[at] == '-' || number[at] == '+')) ++at;
    int64_t written = 0;
    for (; at < number.size(); ++at) written = std::min<int64_t>(written * 10 + (number[at] - '0'), 100000);
    exponent += down ? -written : written;
  }
  auto value = static_cast<double>(digits);
  for (; value != 0.0 && exponent < -308; exponent += 308) value /= 1e308;
  // Correctly rounded powers, which std::pow does not promise.
  static const std::vector<double> kPowers = [] {
    std::vector<double> powers;
    for (int i = 0; i <= 308; ++i) powers.push_back(std::stod("1e" + std::to_string(i)));
    return powers;
  }();
  if (value != 0.0) {
    const double power = kPowers[static_cast<size_t>(std::min<int64_t>(std::abs(exponent), 308))];
    value = exponent < 0 ? value / power : value * power;
  }
  return negative ? -value : value;
}

void JsonNode::refuse(const std::string& expected, const std::string& advice) const {
  std::string found = value_ ? value_->dump(-1, ' ', true, json::error_handler_t::replace) : "nothing";
  if (found.size() > 80) found = found.substr(0, 80) + "...";
  throw FormatError({where_, found, expected, advice});
}

JsonNode JsonNode::operator[](const std::string& key) const {
  const json* found = nullptr;
  if (present()) {
    const auto member = object().find(key);
    if (member != value_->end()) found = &*member;
  }
  return {found, where_ + (where_.ends_with(": ") ? "" : ".") + key};
}

const json& JsonNode::object() const {
  if (!present() || !value_->is_object()) refuse("an object");
  return *value_;
}

size_t JsonNode::size() const {
  if (!is_array()) refuse("an array");
  return value_->size();
}

JsonNode JsonNode::at(size_t i) const { return {&(*value_)[i], fmt::format("{}[{}]", where_, i)}; }

const std::string& JsonNode::text() const {
  if (!is_text()) refuse("a string");
  return value_->get_ref<const std::string&>();
}

bool JsonNode::flag(bool absent) const {
  if (!present()) return absent;
  if (!value_->is_boolean()) refuse("true or false");
  return value_->get<bool>();
}

double JsonNode::number() const {
  if (!present() || !value_->is_number()) refuse("a number");
  return value_->get<double>();
}

int32_t JsonNode::id() const {
  constexpr double kEnd = 1 << 24;
  if (!present() || !value_->is_number_integer() || !(number() >= 0) || number() >= kEnd) {
    refuse("an integer from 0 to 2^24 - 1");
  }
  return value_->get<int32_t>();
}

}  // namespace squareq
