// The training data on disk: which pictures there are, what is wrong with them, and in which sizes they are trained.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/buckets.h"
#include "engine/config.h"
#include "engine/pixel_budget.h"
#include "io/image.h"
#include "kernels/base/error.h"

namespace squareq {

struct Picture {
  std::string path;
  std::string caption;       // as its file or metadata.jsonl has it
  std::string mask;          // path of a grey picture; empty: none
  std::uint32_t folder = 0;  // entry of DataConfig::folders
  ImageSize size;            // upright, in pixels
  std::string hash;          // SHA-256 of the file
  std::string mask_hash;     // of the mask's file
};

enum class Fault : std::uint8_t {
  kFolder,      // missing, unreadable or without pictures
  kPicture,     // unreadable, damaged or of another format
  kCaption,     // missing, not UTF-8, too long
  kSharedName,  // two pictures with one caption file
  kMask,        // unreadable, or of another size than its picture
  kResolution,  // no picture is large enough for it
  kTooSmall,    // left out at some resolution
  kDuplicate,   // the same file twice
};

// Those up to kResolution prevent training.
inline bool prevents_training(Fault fault) { return fault <= Fault::kResolution; }

struct Finding {
  Fault fault = Fault::kPicture;
  std::string path;
  Problem problem;
};

// One picture in one size.
struct Sample {
  std::uint32_t picture = 0;
  std::uint32_t bucket = 0;
};

struct Dataset {
  std::vector<Picture> pictures;  // readable ones, in the order of the folders and of the bytes of file names
  std::vector<Bucket> buckets;    // that samples have, by area and width
  std::vector<Sample> samples;    // in the order of the pictures, then by rising resolution
  std::vector<Finding> findings;  // in the same order
};

// Whether pictures are decoded to see that their pixels are whole, or their headers and checksums suffice.
enum class Inspection : std::uint8_t { kHeaders, kPixels };

// Lists every file of data.folders ending in .png, .jpg, .jpeg, .webp or .bmp (any case) with its caption: the .txt
// file of the same stem, else the .caption file, else the entry in the folder's metadata.jsonl, else default_caption.
// Hidden files are ignored and subfolders not entered. What is wrong becomes a finding; nothing is thrown for bad
// input. `threads`: 0 for one per hardware thread. Memory beyond the lists is bounded by the pictures being decoded.
Dataset inspect_dataset(const DataConfig& data, int threads, Inspection inspection);

// Throws FormatError with the first finding that prevents training and the number of others.
void require_trainable(const Dataset& dataset);

constexpr std::int64_t kTokenPixels = 16;  // sides of the square of pixels that one image token stands for

struct SamplePixels {
  Image image;                 // of the bucket's size
  std::vector<float> weights;  // of the loss of each token, row by row, with mean 1; empty without a mask
};

// The picture scaled to cover the bucket and cropped around its centre, as its mask is. The weight of a token is the
// mean brightness (0 to 1) of the mask in its square, mapped to mask_floor + (1 - mask_floor) x brightness, divided by
// the mean of all tokens. Throws FileError and FormatError, also where the file is not what it was when it was
// inspected, or where all weights are 0.
SamplePixels load_sample(const Picture& picture, const FolderConfig& folder, const Bucket& bucket, PixelBudget& budget);

}  // namespace squareq
