// What squareq-train --check-data says about a data set.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/dataset.h"

namespace squareq {

struct FolderUse {
  std::string folder;
  std::int64_t pictures = 0;  // usable ones
  std::int64_t draws = 0;     // of all its samples in an epoch
};

struct BucketUse {
  Bucket bucket;
  std::int64_t pictures = 0;
  std::int64_t draws = 0;  // in an epoch
};

// Lengths of captions in T5 tokens, with the end token.
struct TokenLengths {
  std::int64_t least = 0, median = 0, most = 0;
  std::int64_t limit = 0;  // of the run
  std::int64_t cut = 0;    // captions longer than that
};

struct DataReport {
  std::vector<FolderUse> folders;
  std::vector<BucketUse> buckets;
  std::optional<TokenLengths> tokens;  // none where there is no tokenizer or no caption
  Dataset dataset;

  std::int64_t count(Fault fault) const;
  bool trainable() const;
};

// Reads and decodes every picture.
DataReport check_data(const TrainConfig& config);

// A table of all that, for people, with the first findings of each kind.
std::string report_text(const DataReport& report);

// The crops of at most `limit` samples, spread evenly over the samples of each bucket, in rows labelled by their size.
Image data_contact_sheet(const TrainConfig& config, const Dataset& dataset, std::int64_t limit = 400);

// "unreadable picture"; what the report calls a fault.
const char* name_of(Fault fault);

}  // namespace squareq
