#include "engine/import_tree.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "kernels/base/error.h"

// toml++ checks with assertions what some texts break ("[[["): they are to fail as others do, whatever the build.
#undef NDEBUG
#define TOML_ASSERT(condition) ((condition) ? void() : throw std::logic_error(#condition))
#include <toml++/toml.h>

namespace squareq {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kLargestText = 1U << 20U;
constexpr int kMostValues = 100'000;
constexpr int kMostLevels = 64;

void check_size(std::string_view text, const std::string& source) {
  if (text.size() <= kLargestText) return;
  throw FormatError({source, fmt::format("{} bytes", text.size()), "settings of at most a megabyte", ""});
}

// yaml-cpp goes down once a level, so that brackets by the thousand would exhaust the stack.
void check_brackets(std::string_view text, const std::string& source) {
  int depth = 0;
  for (const char c : text) {
    if (c == '[' || c == '{') ++depth;
    if ((c == ']' || c == '}') && depth > 0) --depth;
    if (depth > kMostLevels) throw FormatError({source, "brackets in brackets", "at most 64 levels", ""});
  }
}

// toml++ makes a table a dot in a key, which is also a level of its stack when it lets them go.
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

Json from_toml(const toml::node& node, Limits& limits, int level) {
  limits.enter(level);
  if (const toml::table* table = node.as_table()) {
    // The library sorts by name; people expect the order of their file.
    std::vector<std::pair<toml::source_position, std::string>> order;
    for (const auto& [key, value] : *table) order.emplace_back(key.source().begin, std::string(key.str()));
    std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    Json map = Json::object();
    for (const auto& [position, key] : order) map[key] = from_toml(*table->get(key), limits, level + 1);
    return map;
  }
  if (const toml::array* array = node.as_array()) {
    Json list = Json::array();
    for (const toml::node& entry : *array) list.push_back(from_toml(entry, limits, level + 1));
    return list;
  }
  if (const auto value = node.value_exact<std::int64_t>()) return integer_value(*value);
  if (const auto value = node.value_exact<bool>()) return *value;
  if (const auto value = node.value_exact<double>()) return *value;
  if (const auto value = node.value_exact<std::string>()) return *value;
  std::ostringstream text;
  node.visit([&](const auto& value) { text << value; });
  return text.str();
}

[[noreturn]] void fail(const std::string& source, std::int64_t line, std::int64_t column, std::string_view message,
                       const char* format) {
  throw FormatError({fmt::format("{}: line {}, column {}", source, line, column), std::string(message), format, ""});
}

}  // namespace

nlohmann::ordered_json parse_yaml(std::string_view text, const std::string& source) {
  check_size(text, source);
  check_brackets(text, source);
  Limits limits(source);
  try {
    return from_yaml(YAML::Load(std::string(text)), limits, 0);
  } catch (const YAML::Exception& error) {
    fail(source, error.mark.line + 1, error.mark.column + 1, error.msg, "YAML");
  }
}

nlohmann::ordered_json parse_toml(std::string_view text, const std::string& source) {
  check_size(text, source);
  check_dots(text, source);
  Limits limits(source);
  try {
    return from_toml(toml::parse(text), limits, 0);
  } catch (const toml::parse_error& error) {
    fail(source, error.source().begin.line, error.source().begin.column, error.description(), "TOML");
  } catch (const std::logic_error&) {
    throw FormatError({source, "something else", "TOML", "look for brackets that do not belong there"});
  }
}

}  // namespace squareq
