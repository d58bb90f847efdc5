#include "engine/import_tree.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <sstream>
#include <toml.hpp>
#include <tuple>

#include "kernels/base/error.h"

namespace squareq {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kLargestText = 1U << 20U;
constexpr int kMostValues = 100'000;
constexpr int kMostLevels = 64;

void check_text(std::string_view text, const std::string& source) {
  if (text.size() > kLargestText) {
    throw FormatError({source, fmt::format("{} bytes", text.size()), "settings of at most a megabyte", ""});
  }
  try {
    static_cast<void>(Json(text).dump());
  } catch (const Json::type_error&) {
    throw FormatError({source, "bytes that are no UTF-8", "a text file", "save it as UTF-8"});
  }
}

// Both parsers go down once a level, so that brackets by the thousand would exhaust the stack.
void check_brackets(std::string_view text, const std::string& source) {
  int depth = 0;
  for (const char c : text) {
    if (c == '[' || c == '{') ++depth;
    if ((c == ']' || c == '}') && depth > 0) --depth;
    if (depth > kMostLevels) throw FormatError({source, "brackets in brackets", "at most 64 levels", ""});
  }
}

// So does a dot in a key of TOML.
void check_dots(std::string_view text, const std::string& source) {
  constexpr int kMostDots = 1000;
  int dots = 0;
  for (const char c : text) {
    dots = c == '\n' ? 0 : dots + (c == '.' ? 1 : 0);
    if (dots > kMostDots) throw FormatError({source, "a line of more than 1000 dots", "TOML settings", ""});
  }
}

class Limits {
 public:
  explicit Limits(const std::string& source) : source_(source) {}
  void enter(int level) {
    if (++values_ <= kMostValues && level <= kMostLevels) return;
    throw FormatError({source_, values_ > kMostValues ? "more than 100,000 values" : "more than 64 levels",
                       "settings of a training run", ""});
  }

 private:
  const std::string& source_;
  int values_ = 0;
};

// As the reader of our own files has it: what is not negative is unsigned.
Json integer_value(std::int64_t value) { return value < 0 ? Json(value) : Json(static_cast<std::uint64_t>(value)); }

Json plain_scalar(const YAML::Node& node) {
  bool flag = false;
  std::int64_t integer = 0;
  double number = 0.0;
  if (YAML::convert<bool>::decode(node, flag)) return flag;
  if (YAML::convert<std::int64_t>::decode(node, integer)) return integer_value(integer);
  if (YAML::convert<double>::decode(node, number)) return number;
  return node.Scalar();
}

Json from_yaml(const YAML::Node& node, Limits& limits, int level) {
  limits.enter(level);
  if (node.IsScalar()) return node.Tag() == "?" ? plain_scalar(node) : Json(node.Scalar());
  if (node.IsSequence()) {
    Json list = Json::array();
    for (const YAML::Node& entry : node) list.push_back(from_yaml(entry, limits, level + 1));
    return list;
  }
  if (!node.IsMap()) return nullptr;
  Json map = Json::object();
  for (const auto& entry : node) map[entry.first.Scalar()] = from_yaml(entry.second, limits, level + 1);
  return map;
}

Json from_toml(const toml::value& value, Limits& limits, int level) {
  limits.enter(level);
  switch (value.type()) {
    case toml::value_t::table: {
      // The library forgets the order, which people expect to be that of their file.
      std::vector<std::tuple<std::size_t, std::size_t, std::string>> order;
      for (const auto& [key, entry] : value.as_table()) {
        order.emplace_back(entry.location().line(), entry.location().column(), key);
      }
      std::sort(order.begin(), order.end());
      Json map = Json::object();
      for (const auto& [line, column, key] : order) map[key] = from_toml(value.as_table().at(key), limits, level + 1);
      return map;
    }
    case toml::value_t::array: {
      Json list = Json::array();
      for (const toml::value& entry : value.as_array()) list.push_back(from_toml(entry, limits, level + 1));
      return list;
    }
    case toml::value_t::boolean: return value.as_boolean();
    case toml::value_t::integer: return integer_value(value.as_integer());
    case toml::value_t::floating: return value.as_floating();
    case toml::value_t::string: return value.as_string().str;
    default: return toml::format(value);  // dates and times
  }
}

[[noreturn]] void fail(const std::string& source, std::int64_t line, std::int64_t column, std::string_view message,
                       const char* format) {
  throw FormatError({fmt::format("{}: line {}, column {}", source, line, column), std::string(message), format, ""});
}

}  // namespace

nlohmann::ordered_json parse_yaml(std::string_view text, const std::string& source) {
  check_text(text, source);
  check_brackets(text, source);
  Limits limits(source);
  try {
    return from_yaml(YAML::Load(std::string(text)), limits, 0);
  } catch (const YAML::Exception& error) {
    fail(source, error.mark.line + 1, error.mark.column + 1, error.msg, "YAML");
  }
}

nlohmann::ordered_json parse_toml(std::string_view text, const std::string& source) {
  check_text(text, source);
  check_brackets(text, source);
  check_dots(text, source);
  Limits limits(source);
  std::istringstream stream{std::string(text)};
  try {
    return from_toml(toml::parse(stream, source), limits, 0);
  } catch (const toml::exception& error) {
    std::string message = error.what();
    message.resize(std::min(message.find('\n'), message.size()));
    fail(source, error.location().line(), error.location().column(), message, "TOML");
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {  // numbers out of range, dates that there are not
    throw FormatError({source, error.what(), "TOML", ""});
  }
}

}  // namespace squareq
