#include "engine/data_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <thread>

#include "engine/captions.h"
#include "engine/contact_sheet.h"
#include "engine/model_parts.h"
#include "engine/read_ahead.h"
#include "io/captions.h"
#include "io/tokenizer_files.h"
#include "model/text/t5_tokenizer.h"

namespace squareq {
namespace {

constexpr std::array kFaults{Fault::kFolder, Fault::kPicture,    Fault::kCaption,  Fault::kSharedName,
                             Fault::kMask,   Fault::kResolution, Fault::kTooSmall, Fault::kDuplicate};

void count_uses(const TrainConfig& config, DataReport& report) {
  for (const FolderConfig& folder : config.data.folders) report.folders.push_back({folder.folder});
  for (const Bucket& bucket : report.dataset.buckets) report.buckets.push_back({bucket});
  for (const Picture& picture : report.dataset.pictures) ++report.folders[picture.folder].pictures;
  for (const Sample& sample : report.dataset.samples) {
    const std::uint32_t folder = report.dataset.pictures[sample.picture].folder;
    const std::int64_t repeats = config.data.folders[folder].repeats;
    report.folders[folder].draws += repeats;
    report.buckets[sample.bucket].draws += repeats;
    ++report.buckets[sample.bucket].pictures;
  }
}

// Of the captions as they are trained, in their first order.
std::optional<TokenLengths> token_lengths(const TrainConfig& config, const Dataset& dataset) {
  ModelParts parts = config.model.empty() ? ModelParts{} : find_model_parts(config.model);
  if (!config.tokenizers.empty()) parts.tokenizers = config.tokenizers;
  if (parts.tokenizers.empty() || dataset.pictures.empty()) return std::nullopt;
  const T5Tokenizer tokenizer(read_t5_vocabulary(parts.tokenizers + "/tokenizer_2"));
  std::vector<std::int64_t> lengths;
  for (std::uint32_t i = 0; i < dataset.pictures.size(); ++i) {
    const Picture& picture = dataset.pictures[i];
    const FolderConfig& folder = config.data.folders[picture.folder];
    const std::string text = caption_texts(folder, picture.caption, config.training.seed, i).front();
    lengths.push_back(static_cast<std::int64_t>(tokenizer.encode(text, kCaptionLimit).size()));
  }
  std::sort(lengths.begin(), lengths.end());
  TokenLengths result{.least = lengths.front(), .median = lengths[lengths.size() / 2], .most = lengths.back()};
  result.limit = config.data.text_length > 0 ? config.data.text_length : text_length(parts, true);
  result.cut = lengths.end() - std::upper_bound(lengths.begin(), lengths.end(), result.limit);
  return result;
}

}  // namespace

const char* name_of(Fault fault) {
  switch (fault) {
    case Fault::kFolder: return "unusable folder";
    case Fault::kPicture: return "unreadable picture";
    case Fault::kCaption: return "missing or bad caption";
    case Fault::kSharedName: return "duplicate name";
    case Fault::kMask: return "unusable mask";
    case Fault::kResolution: return "resolution without pictures";
    case Fault::kTooSmall: return "too small";
    case Fault::kDuplicate: return "duplicate picture";
  }
  return "";
}

std::int64_t DataReport::count(Fault fault) const {
  return std::count_if(dataset.findings.begin(), dataset.findings.end(),
                       [&](const Finding& finding) { return finding.fault == fault; });
}

bool DataReport::trainable() const {
  return std::none_of(dataset.findings.begin(), dataset.findings.end(),
                      [](const Finding& finding) { return prevents_training(finding.fault); });
}

DataReport check_data(const TrainConfig& config) {
  DataReport report;
  report.dataset = inspect_dataset(config.data, static_cast<int>(config.threads), Inspection::kPixels);
  count_uses(config, report);
  report.tokens = token_lengths(config, report.dataset);
  return report;
}

std::string report_text(const DataReport& report) {
  constexpr std::int64_t kShown = 20;  // of each kind
  std::string text = fmt::format("{:>9} {:>9}  folder\n", "pictures", "draws");
  for (const FolderUse& use : report.folders) {
    text += fmt::format("{:9} {:9}  {}\n", use.pictures, use.draws, use.folder);
  }
  text += fmt::format("\n{:>9} {:>9}  bucket\n", "pictures", "draws");
  for (const BucketUse& use : report.buckets) {
    text += fmt::format("{:9} {:9}  {} x {}\n", use.pictures, use.draws, use.bucket.width, use.bucket.height);
  }
  if (report.tokens) {
    const TokenLengths& t = *report.tokens;
    text += fmt::format("\ncaptions: {} to {} T5 tokens, median {}; {} longer than the limit of {} and cut\n", t.least,
                        t.most, t.median, t.cut, t.limit);
  }
  text += "\n";
  for (const Fault fault : kFaults) {
    const std::int64_t count = report.count(fault);
    text += fmt::format("{:9}  {}{}\n", count, name_of(fault),
                        count > 0 && prevents_training(fault) ? " (prevents training)" : "");
    std::int64_t shown = 0;
    for (const Finding& finding : report.dataset.findings) {
      if (finding.fault == fault && shown++ < kShown) {
        text += fmt::format("           - {}\n", Error(finding.problem).what());
      }
    }
    if (shown > kShown) text += fmt::format("           - and {} more (--json lists all)\n", shown - kShown);
  }
  text += report.trainable() ? "\nready to train\n" : "\nnot ready to train\n";
  return text;
}

Image data_contact_sheet(const TrainConfig& config, const Dataset& dataset, std::int64_t limit) {
  constexpr std::int64_t kColumns = 16;
  constexpr int kSide = 128;
  std::vector<std::vector<Sample>> by_bucket(dataset.buckets.size());
  for (const Sample& sample : dataset.samples) by_bucket[sample.bucket].push_back(sample);
  const auto total = static_cast<std::int64_t>(dataset.samples.size());
  std::vector<Sample> shown;
  std::vector<SheetRow> rows;
  for (std::size_t b = 0; b < by_bucket.size(); ++b) {
    const auto count = static_cast<std::int64_t>(by_bucket[b].size());
    const std::int64_t wanted = total <= limit ? count : std::max<std::int64_t>(1, count * limit / total);
    for (std::int64_t i = 0; i < wanted; ++i) {
      const Sample& sample = by_bucket[b][static_cast<std::size_t>(i * count / wanted)];
      if (i % kColumns == 0) {
        const Bucket& bucket = dataset.buckets[b];
        rows.push_back({i == 0 ? fmt::format("{}X{}", bucket.width, bucket.height) : "", {}});
      }
      rows.back().files.push_back(dataset.pictures[sample.picture].path);
      shown.push_back(sample);
    }
  }
  PixelBudget budget;
  const std::size_t threads =
      config.threads > 0 ? static_cast<std::size_t>(config.threads) : std::max(1U, std::thread::hardware_concurrency());
  ReadAhead<Image> crops(shown.size(), threads, [&](std::size_t i) {
    const Picture& picture = dataset.pictures[shown[i].picture];
    const Image crop =
        load_sample(picture, config.data.folders[picture.folder], dataset.buckets[shown[i].bucket], budget).image;
    const int longest = std::max(crop.width, crop.height);
    return resize_and_crop(crop, std::max(1, crop.width * kSide / longest), std::max(1, crop.height * kSide / longest));
  });
  return contact_sheet(rows, kSide, [&](const std::string&) { return crops.next(); });
}

}  // namespace squareq
