#include <fmt/format.h>

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

}  // namespace

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
