#include "apps/train/data_check.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/data_report.h"

namespace squareq {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

Json json_of(const DataReport& report) {
  Json json{{"trainable", report.trainable()},
            {"folders", Json::array()},
            {"buckets", Json::array()},
            {"samples", Json::array()},
            {"findings", Json::array()}};
  for (const FolderUse& use : report.folders) {
    json["folders"].push_back({{"folder", use.folder}, {"pictures", use.pictures}, {"draws", use.draws}});
  }
  for (const BucketUse& use : report.buckets) {
    json["buckets"].push_back(
        {{"width", use.bucket.width}, {"height", use.bucket.height}, {"pictures", use.pictures}, {"draws", use.draws}});
  }
  for (const Sample& sample : report.dataset.samples) {
    json["samples"].push_back({{"picture", report.dataset.pictures[sample.picture].path}, {"bucket", sample.bucket}});
  }
  if (report.tokens) {
    const TokenLengths& t = *report.tokens;
    json["tokens"] = {{"least", t.least}, {"median", t.median}, {"most", t.most}, {"limit", t.limit}, {"cut", t.cut}};
  }
  for (const Finding& finding : report.dataset.findings) {
    json["findings"].push_back({{"fault", name_of(finding.fault)},
                                {"path", finding.path},
                                {"message", Error(finding.problem).what()},
                                {"prevents_training", prevents_training(finding.fault)}});
  }
  return json;
}

}  // namespace

int run_data_check(const std::string& config_path, bool json) {
  const TrainConfig config = load_train_config(config_path);
  const DataReport report = check_data(config);
  if (json) {
    fmt::print("{}\n", json_of(report).dump(2));
  } else {
    fmt::print("{}", report_text(report));
  }
  if (!report.dataset.samples.empty()) {
    fs::create_directories(config.output_dir);
    const std::string sheet = (fs::path(config.output_dir) / "data-contact-sheet.png").string();
    write_png(sheet, data_contact_sheet(config, report.dataset));
    fmt::print(stderr, "contact sheet {}\n", sheet);
  }
  return report.trainable() ? 0 : 1;
}

}  // namespace squareq
