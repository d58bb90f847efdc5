#include <algorithm>
#include <charconv>

#include "engine/config_rows.h"

namespace squareq {
namespace {

constexpr std::int64_t kSmallest = 16;
constexpr std::int64_t kLargest = 8192;

bool read_side(const Json& value, std::int64_t& to) {
  return read_integer(value, kSmallest, kLargest, to) && to % 16 == 0;
}

// "832x1216"
bool read_size(const std::string& text, std::array<std::int64_t, 2>& to) {
  const std::size_t x = text.find('x');
  if (x == std::string::npos) return false;
  const auto side = [](std::string_view digits, std::int64_t& value) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return error == std::errc() && end == digits.data() + digits.size() && read_side(Json(value), value);
  };
  return side(std::string_view(text).substr(0, x), to[0]) && side(std::string_view(text).substr(x + 1), to[1]);
}

bool read_resolution(const Json& value, DataConfig& data) {
  std::vector<std::int64_t> sides;
  std::array<std::int64_t, 2> size{0, 0};
  if (value.is_string()) {
    if (!read_size(value.get<std::string>(), size)) return false;
  } else {
    const Json list = value.is_array() ? value : Json::array({value});
    if (list.empty() || list.size() > 8) return false;
    for (const Json& entry : list) {
      if (!read_side(entry, sides.emplace_back())) return false;
    }
    if (sides.size() == 2 && sides[0] == sides[1]) {
      size = {sides[0], sides[1]};
      sides.clear();
    }
    std::sort(sides.begin(), sides.end());
    if (std::adjacent_find(sides.begin(), sides.end()) != sides.end()) return false;
  }
  data.resolution = std::move(sides);
  data.fixed_size = size;
  return true;
}

ConfigField resolution_field() {
  const Json side{{"type", "integer"}, {"minimum", kSmallest}, {"maximum", kLargest}, {"multipleOf", 16}};
  ConfigField field;
  field.path = "data.resolution";
  field.expected =
      "a number, a list of 1 to 8 different numbers, or \"WIDTHxHEIGHT\"; each a multiple of 16 from 16 to 8192";
  field.doc =
      "Numbers: pictures keep their shape, in buckets of about the area of a square of that side (docs/data.md). With "
      "several, every picture is trained at each that it is large enough for. \"832x1216\": every picture is brought "
      "to that one size. Two equal numbers, as [1024, 1024], mean one size too. The model computes on width x height / "
      "256 image tokens.";
  field.required = true;
  field.schema = {{"oneOf",
                   {side,
                    {{"type", "array"}, {"items", side}, {"minItems", 1}, {"maxItems", 8}},
                    {{"type", "string"}, {"pattern", "^[0-9]+x[0-9]+$"}}}}};
  field.set = [](TrainConfig& c, const Json& value) { return read_resolution(value, c.data); };
  field.get = [](const TrainConfig& c) {
    const DataConfig& data = c.data;
    if (data.fixed_size[0] > 0) return Json(fmt::format("{}x{}", data.fixed_size[0], data.fixed_size[1]));
    if (data.resolution.empty()) return Json();
    return data.resolution.size() == 1 ? Json(data.resolution[0]) : Json(data.resolution);
  };
  return field;
}

ConfigField bucket_step_field() {
  ConfigField field = integer(FIELD(data.bucket_step), 16, 1024, "Sides of buckets are multiples of this.");
  field.expected = "a multiple of 16 from 16 to 1024";
  field.schema["multipleOf"] = 16;
  field.set = [](TrainConfig& c, const Json& value) {
    return read_integer(value, 16, 1024, c.data.bucket_step) && c.data.bucket_step % 16 == 0;
  };
  return field;
}

// Entries are read by engine/config.cpp, once all defaults are known.
ConfigField folders_field(const std::vector<ConfigField>& per_folder) {
  ConfigField field;
  field.path = "data.folders";
  field.expected = "a list of 1 to 256 sections { } that each name a folder";
  field.doc =
      "Several folders in place of `folder`. An entry has the field `folder` and any others marked *per folder*, "
      "which stand for this folder in place of those of the section.";
  field.absent = "the one in `folder`";
  field.set = [](TrainConfig&, const Json&) { return false; };
  field.get = [per_folder](const TrainConfig& c) {
    if (!c.data.folder.empty() || c.data.folders.empty()) return Json();
    Json list = Json::array();
    for (const FolderConfig& folder : c.data.folders) {
      TrainConfig one;
      static_cast<FolderConfig&>(one.data) = folder;
      Json& entry = list.emplace_back(Json::object());
      for (const ConfigField& row : per_folder) {
        if (const Json value = row.get(one); !value.is_null()) entry[row.leaf()] = value;
      }
    }
    return list;
  };
  Json properties = Json::object();
  for (const ConfigField& row : per_folder) {
    properties[row.leaf()] = row.schema;
    properties[row.leaf()]["description"] = row.doc;
  }
  field.schema = {
      {"type", "array"},
      {"items",
       {{"type", "object"}, {"properties", properties}, {"required", {"folder"}}, {"additionalProperties", false}}},
      {"minItems", 1},
      {"maxItems", 256}};
  return field;
}

void add_caption_fields(std::vector<ConfigField>& t) {
  const auto text = [](const char* what, const char* absent) { return Doc{what, false, absent}; };
  t.push_back(words(FIELD(data.default_caption),
                    text("Caption of pictures that have no caption.", "a picture without a caption is an error")));
  t.push_back(
      words(FIELD(data.trigger),
            text("Word for what is learnt. It replaces `[trigger]` in captions, and is put before captions that "
                 "have neither. Not used in regularisation folders.",
                 "none")));
  t.push_back(words(FIELD(data.prefix), text("Put before every caption as it is, before the trigger word.", "none")));
  t.push_back(words(FIELD(data.suffix), text("Put after every caption as it is.", "none")));
  t.push_back(number(FIELD(data.caption_dropout), {.low = 0.0, .high = 1.0},
                     "Share of draws in which the whole caption is left out."));
  t.push_back(integer(FIELD(data.tag_orders), 0, 64,
                      "Number of random orders in which the comma-separated tags of each caption are put; every draw "
                      "takes one of them. 0: captions stay as they are. Each order has text states of its own in "
                      "`cache_dir`."));
  t.push_back(integer(FIELD(data.keep_tags), 0, 1000, "First tags that keep their place when tags are put in order."));
}

void add_picture_fields(std::vector<ConfigField>& t) {
  t.push_back(integer(FIELD(data.repeats), 1, 10000, "How often every picture is drawn in an epoch."));
  t.push_back(number(FIELD(data.weight), {.low = 0.0, .high = 1000.0, .open_low = true},
                     "Factor of the loss of these pictures."));
  t.push_back(boolean(FIELD(data.regularisation),
                      "Pictures of what the model knows already and is to keep: their loss is also multiplied by "
                      "`prior_weight`, and they get no trigger word."));
  t.push_back(boolean(FIELD(data.flip), "Draw a picture mirrored half of the time."));
  t.push_back(boolean(FIELD(data.alpha_mask),
                      "The transparency of a picture weights its loss: none where it is transparent. Its colours are "
                      "taken as stored. False: transparent pictures are put on white."));
  t.push_back(path_to(FIELD(data.mask_folder), "a path",
                      Doc{"Folder with a grey picture of the same name (any picture format) and size for each picture: "
                          "its brightness weights the loss. A picture without one is not masked.",
                          false, "none"}));
  t.push_back(number(FIELD(data.mask_floor), {.low = 0.0, .high = 1.0}, "Weight of the loss where a mask is black."));
}

}  // namespace

void add_data_fields(std::vector<ConfigField>& t) {
  std::vector<ConfigField> per_folder;
  per_folder.push_back(path_to(FIELD(data.folder), "a path",
                               Doc{"Pictures (.png, .jpg, .jpeg, .webp, .bmp) with captions in .txt or .caption files "
                                   "of the same name or in metadata.jsonl. Subfolders are not entered.",
                                   false, "*required*, or `folders`"}));
  add_picture_fields(per_folder);
  add_caption_fields(per_folder);
  for (ConfigField& field : per_folder) field.per_folder = true;
  t.push_back(folders_field(per_folder));
  t.push_back(resolution_field());
  t.push_back(bucket_step_field());
  t.push_back(boolean(FIELD(data.upscale),
                      "Enlarge pictures that are too small for a bucket. False: they are left out at that resolution, "
                      "with a warning."));
  t.push_back(number(FIELD(data.prior_weight), {.low = 0.0, .high = 1000.0},
                     "Factor of the loss of folders with `regularisation`."));
  t.push_back(integer(FIELD(data.text_length), 0, 4096,
                      "T5 tokens per caption; longer captions are cut. 0: the length the model was made for."));
  t.push_back(
      choice(FIELD(data.latent),
             std::vector<std::pair<std::string, DataConfig::Latent>>{{"sample", DataConfig::Latent::kSample},
                                                                     {"mean", DataConfig::Latent::kMean}},
             "What stands for a picture: one draw from the autoencoder's distribution, always the same for the same "
             "picture, or the distribution's mean."));
  std::move(per_folder.begin(), per_folder.end(), std::back_inserter(t));
}

}  // namespace squareq
