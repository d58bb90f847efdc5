// How the rows of the table of settings are made: one function for each kind of value.
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>
#include <vector>

#include "engine/config_table.h"

namespace squareq {

using Json = nlohmann::ordered_json;

inline constexpr std::int64_t kMany = 1'000'000'000;  // steps; noise is keyed by 32-bit step numbers

// Path and accessor of a member in one word, so that a field's name in the file is its name in the struct.
#define FIELD(member) \
#member, [](auto& c) -> auto& { return c.member; }

// JSON Schema of one value.
inline Json schema_of(const char* type) { return {{"type", type}}; }

struct Doc {
  std::string text;
  bool required = false;
  std::string absent;
};

template <class Member>
ConfigField row(std::string path, std::string expected, Doc doc, Member member, Json schema,
                std::function<bool(TrainConfig&, const Json&)> set) {
  ConfigField field;
  field.path = std::move(path);
  field.expected = std::move(expected);
  field.doc = std::move(doc.text);
  field.required = doc.required;
  field.absent = std::move(doc.absent);
  field.schema = std::move(schema);
  field.set = std::move(set);
  field.get = [member](const TrainConfig& c) { return Json(member(c)); };
  return field;
}

inline bool read_integer(const Json& value, std::int64_t low, std::int64_t high, std::int64_t& to) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(high)) return false;
  const auto number = value.get<std::int64_t>();
  if (number < low || number > high) return false;
  to = number;
  return true;
}

// Bounds of a number; `open_low` leaves the lower bound itself out, `open_high` the upper one.
struct Range {
  double low = 0.0;
  double high = 0.0;
  bool open_low = false;
  bool open_high = false;

  bool holds(double x) const {
    return (open_low ? x > low : x >= low) && (open_high ? x < high : x <= high);  // false for NaN
  }
  Json schema() const {
    return {{"type", "number"},
            {open_low ? "exclusiveMinimum" : "minimum", low},
            {open_high ? "exclusiveMaximum" : "maximum", high}};
  }
  std::string text() const {
    if (open_low) return fmt::format("above {} and at most {}", low, high);
    return open_high ? fmt::format("from {} to below {}", low, high) : fmt::format("from {} to {}", low, high);
  }
};

inline bool read_number(const Json& value, const Range& range, double& to) {
  if (!value.is_number()) return false;
  const double number = value.get<double>();
  if (!range.holds(number)) return false;
  to = number;
  return true;
}

inline bool read_text_value(const Json& value, std::string& to) {
  if (!value.is_string()) return false;
  const auto& text = value.get_ref<const std::string&>();
  if (text.empty() || text.size() > 4096 || text.find('\0') != std::string::npos) return false;
  to = text;
  return true;
}

template <class Member>
ConfigField integer(std::string path, Member member, std::int64_t low, std::int64_t high, std::string text) {
  return row(std::move(path), fmt::format("an integer from {} to {}", low, high), {std::move(text)}, member,
             {{"type", "integer"}, {"minimum", low}, {"maximum", high}},
             [=](TrainConfig& c, const Json& value) { return read_integer(value, low, high, member(c)); });
}

template <class Member>
ConfigField number(std::string path, Member member, Range range, std::string text) {
  return row(std::move(path), "a number " + range.text(), {std::move(text)}, member, range.schema(),
             [=](TrainConfig& c, const Json& value) { return read_number(value, range, member(c)); });
}

template <class Member>
ConfigField boolean(std::string path, Member member, std::string text) {
  return row(std::move(path), "true or false", {std::move(text)}, member, schema_of("boolean"),
             [=](TrainConfig& c, const Json& value) {
               if (!value.is_boolean()) return false;
               member(c) = value.get<bool>();
               return true;
             });
}

template <class Member>
ConfigField path_to(std::string path, Member member, std::string what, Doc doc) {
  ConfigField field = row(std::move(path), std::move(what), std::move(doc), member, schema_of("string"),
                          [=](TrainConfig& c, const Json& value) { return read_text_value(value, member(c)); });
  field.get = [member](const TrainConfig& c) { return member(c).empty() ? Json() : Json(member(c)); };
  field.file_path = [member](TrainConfig& c) { return &member(c); };
  return field;
}

// A text that may be left out.
template <class Member>
ConfigField words(std::string path, Member member, Doc doc) {
  ConfigField field = row(std::move(path), "a text of at most 4096 bytes", std::move(doc), member, schema_of("string"),
                          [=](TrainConfig& c, const Json& value) { return read_text_value(value, member(c)); });
  field.get = [member](const TrainConfig& c) { return member(c).empty() ? Json() : Json(member(c)); };
  return field;
}

template <class Member, class Value>
ConfigField choice(std::string path, Member member, std::vector<std::pair<std::string, Value>> choices,
                   std::string text) {
  std::string expected;
  Json names = Json::array();
  for (const auto& [name, value] : choices) {
    expected += fmt::format("{}\"{}\"", expected.empty() ? "" : " or ", name);
    names.push_back(name);
  }
  ConfigField field = row(std::move(path), std::move(expected), {std::move(text)}, member, {{"enum", names}},
                          [=](TrainConfig& c, const Json& given) {
                            for (const auto& [name, value] : choices) {
                              if (given != name) continue;
                              member(c) = value;
                              return true;
                            }
                            return false;
                          });
  field.get = [=](const TrainConfig& c) {
    for (const auto& [name, value] : choices) {
      if (member(c) == value) return Json(name);
    }
    return Json();
  };
  return field;
}

// The rows of section `data`, in engine/config_data.cpp, and of `training`, `validation` and `preview`, in
// engine/config_training.cpp.
void add_data_fields(std::vector<ConfigField>& table);
void add_training_fields(std::vector<ConfigField>& table);

}  // namespace squareq
