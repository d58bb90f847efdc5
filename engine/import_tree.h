// Settings files of other trainers as one kind of tree.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace squareq {

// YAML 1.1 and TOML 1.0. Plain YAML scalars become null, booleans, integers and numbers where they look like it, as
// YAML says; dates stay text. Throws FormatError with line and column for text that is neither, and for more than a
// megabyte of it, 100,000 values (aliases counted as often as they are used) or 64 levels; `source` names the text in
// messages.
nlohmann::ordered_json parse_yaml(std::string_view text, const std::string& source);
nlohmann::ordered_json parse_toml(std::string_view text, const std::string& source);

}  // namespace squareq
