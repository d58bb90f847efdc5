#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "engine/config_table.h"

namespace squareq {
namespace {

constexpr const char* kIntroduction = R"(# Configuration of `squareq-train`

<!-- Written by `squareq-train --config-reference > docs/config.md`; a test compares the two. -->

A run is described by one JSON file:

```json
{
  "model": "FLUX.1-dev",
  "output_dir": "output",
  "name": "my-style",
  "data": {
    "folder": "pictures", // with captions beside them
    "resolution": [1024, 1024]
  },
  "lora": { "rank": 16 },
  "training": { "steps": 2000, "learning_rate": 1e-4 }
}
```

- Everything not marked *required* may be left out and then takes its default.
- Comments, `// ...` to the end of the line and `/* ... */`, are allowed.
- Relative paths start at the folder of the configuration file.
- `"$schema": "schema.json"` may stand first: `configs/schema.json` tells editors names, values and meanings.
- A name that is not listed here, a value of another type or out of range, and a name given twice are errors; nothing
  is ignored. The message names the file, the field, what was found and what is expected.

The transformer comes from `model`, `transformer` or `slab`. Without `model`, the fields `vae`, `clip`, `t5` and
`tokenizers` are required.
)";

constexpr const char* kForeignIntroduction = R"(
## Names in other trainers

These names are recognised, and the error says what they are called here.

| elsewhere | here |
|---|---|
)";

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '|') result += '\\';
    result += c;
  }
  return result;
}

std::string default_text(const ConfigField& field) {
  if (field.required) return "*required*";
  if (!field.absent.empty()) return field.absent;
  return fmt::format("`{}`", field.get(TrainConfig{}).dump());
}

// As a comment of lines of at most 116 characters.
std::string commented(const std::string& text, const std::string& indent) {
  constexpr std::size_t kWidth = 116;
  std::string result;
  std::string line = indent + "//";
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    if (line.size() + 1 + end - begin > kWidth) {
      result += line + "\n";
      line = indent + "//";
    }
    line += " " + text.substr(begin, end - begin);
    begin = end + 1;
  }
  return result + line + "\n";
}

// Fields of one section. Those that have no value stand in comments.
std::string template_of(const std::string& section, const TrainConfig& config, const std::string& indent) {
  std::string text;
  std::string comments;  // before the next field with a value
  for (const ConfigField& field : config_fields()) {
    if (field.section() != section) continue;
    const nlohmann::ordered_json value = field.get(config);
    comments += commented(field.doc, indent);
    if (value.is_null()) {
      comments += commented(fmt::format("\"{}\": {}", field.leaf(), field.expected), indent);
    } else {
      if (!text.empty()) text += ",\n";
      text += comments + fmt::format("{}\"{}\": {}", indent, field.leaf(), value.dump());
      comments.clear();
    }
  }
  if (!comments.empty()) comments.insert(0, "\n").pop_back();
  return text + comments;
}

}  // namespace

std::string config_template_json() {
  TrainConfig config;
  config.model = "../FLUX.1-dev";
  config.output_dir = "../output/all-settings";
  config.cache_dir = "../cache";
  config.data.folder = "../pictures";
  config.data.resolution = {512, 768, 1024};
  config.lora.alpha = static_cast<double>(config.lora.rank);
  std::string text = "{\n  \"$schema\": \"schema.json\",\n";
  text += commented("Every setting, with its meaning and, but for the first paths, its default.", "  ");
  std::vector<std::string> parts{template_of("", config, "  ")};
  for (const ConfigField& field : config_fields()) {
    const std::string section = field.section();
    const std::string head = fmt::format("  \"{}\": {{\n", section);
    if (section.empty() || parts.back().starts_with(head)) continue;
    parts.push_back(head + template_of(section, config, "    ") + "\n  }");
  }
  return text + fmt::format("{}", fmt::join(parts, ",\n")) + "\n}\n";
}

std::string config_reference_markdown() {
  std::string text = kIntroduction;
  std::string section = "none yet";
  for (const ConfigField& field : config_fields()) {
    if (field.section() != section) {
      section = field.section();
      text += section.empty() ? "\n## Outside of sections\n" : fmt::format("\n## Section `{}`\n", section);
      text += "\n| field | value | default | meaning |\n|---|---|---|---|\n";
    }
    text +=
        fmt::format("| `{}` | {} | {} | {} |\n", field.leaf(), escaped(field.expected), escaped(default_text(field)),
                    escaped(field.per_folder ? field.doc + " *Per folder.*" : field.doc));
  }
  text += kForeignIntroduction;
  for (const ForeignName& foreign : foreign_names()) {
    text += foreign.path.empty() ? fmt::format("| `{}` | {} |\n", foreign.name, foreign.note)
                                 : fmt::format("| `{}` | `{}` |\n", foreign.name, foreign.path);
  }
  return text;
}

std::string config_schema_json() {
  using Json = nlohmann::ordered_json;
  Json schema{{"$schema", "https://json-schema.org/draft/2020-12/schema"},
              {"title", "Configuration of squareq-train"},
              {"type", "object"},
              {"properties", {{"$schema", {{"type", "string"}}}}},
              {"required", {"data"}},
              {"additionalProperties", false}};
  for (const ConfigField& field : config_fields()) {
    Json* place = &schema;
    if (!field.section().empty()) {
      place = &schema["properties"][field.section()];
      if (place->is_null()) {
        *place = {{"type", "object"}, {"properties", Json::object()}, {"additionalProperties", false}};
      }
    }
    Json& value = (*place)["properties"][field.leaf()];
    value = field.schema;
    value["description"] = field.doc;
    if (const Json standard = field.get(TrainConfig{}); !standard.is_null()) value["default"] = standard;
    if (field.required) (*place)["required"].push_back(field.leaf());
  }
  return schema.dump(2) + "\n";
}

}  // namespace squareq
