#include "engine/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>
#include <map>
#include <optional>
#include <string_view>

#include "engine/identity.h"
#include "io/captions.h"
#include "io/mapped_file.h"
#include "kernels/base/error.h"
#include "kernels/base/thread_pool.h"

namespace squareq {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 5> kEndings{".png", ".jpg", ".jpeg", ".webp", ".bmp"};

bool is_picture(const fs::path& path) {
  std::string extension = path.extension().string();
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return std::find(kEndings.begin(), kEndings.end(), extension) != kEndings.end();
}

// Paths of the pictures in a folder, in order of the bytes of file names.
std::vector<fs::path> list_pictures(const std::string& folder, std::vector<Finding>& findings) {
  std::vector<fs::path> pictures;
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  while (!error && entry != fs::directory_iterator()) {
    const fs::path& path = entry->path();
    std::error_code broken;
    if (is_picture(path) && !path.filename().string().starts_with(".") && !entry->is_directory(broken)) {
      pictures.push_back(path);
    }
    entry.increment(error);
  }
  if (error) {
    findings.push_back({Fault::kFolder, folder, {folder, error.message(), "a readable folder of pictures", ""}});
  } else if (pictures.empty()) {
    findings.push_back(
        {Fault::kFolder,
         folder,
         {folder, "no picture", "files ending in .png, .jpg, .jpeg, .webp or .bmp", "subfolders are not entered"}});
  }
  std::sort(pictures.begin(), pictures.end(),
            [](const fs::path& a, const fs::path& b) { return a.filename().string() < b.filename().string(); });
  return pictures;
}

std::map<std::string, std::string> caption_table(const std::string& folder, std::vector<Finding>& findings) {
  const std::string path = (fs::path(folder) / "metadata.jsonl").string();
  std::error_code error;
  if (!fs::exists(path, error)) return {};
  try {
    return read_caption_table(path);
  } catch (const Error& e) {
    findings.push_back({Fault::kCaption, path, e.problem()});
    return {};
  }
}

// A folder while its pictures are inspected.
struct Listing {
  const FolderConfig& config;
  std::map<std::string, std::string> captions;  // of metadata.jsonl
};

std::string caption_of(const fs::path& picture, const Listing& listing) {
  for (const char* ending : {".txt", ".caption"}) {
    const fs::path path = fs::path(picture).replace_extension(ending);
    std::error_code error;
    if (fs::exists(fs::symlink_status(path, error))) return read_caption(path.string());
  }
  if (const auto entry = listing.captions.find(picture.filename().string()); entry != listing.captions.end()) {
    return entry->second;
  }
  if (!listing.config.default_caption.empty()) return listing.config.default_caption;
  throw FormatError({picture.string(), "no caption",
                     fmt::format("{0}.txt, {0}.caption or an entry in metadata.jsonl", picture.stem().string()),
                     "write one (an empty file is an empty caption), or set data.default_caption"});
}

std::string mask_of(const fs::path& picture, const std::string& folder) {
  if (folder.empty()) return "";
  for (const std::string_view ending : kEndings) {
    const fs::path path = fs::path(folder) / (picture.stem().string() + std::string(ending));
    std::error_code error;
    if (fs::exists(path, error)) return path.string();
  }
  return "";
}

std::string hash_of(const MappedFile& file) {
  return content_hash({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()});
}

// Throws FormatError if the mask has another size than the picture.
void check_mask_size(const std::string& mask, ImageSize found, ImageSize expected) {
  if (found.width == expected.width && found.height == expected.height) return;
  throw FormatError({mask, fmt::format("a mask of {} x {} pixels", found.width, found.height),
                     fmt::format("{} x {}, the size of its picture", expected.width, expected.height), ""});
}

void inspect_mask(Picture& picture) {
  const MappedFile file(picture.mask);
  picture.mask_hash = hash_of(file);
  check_mask_size(picture.mask, image_size(file.bytes(), picture.mask), picture.size);
}

// Decodes without keeping anything.
void decode(const std::string& path, const MappedFile& file, ImageSize size, PixelBudget& budget) {
  const PixelBudget::Share share(budget, std::int64_t{size.width} * size.height);
  decode_image(file.bytes(), path);
}

// What is wrong with a picture, if anything; fills in the rest of it.
std::vector<Finding> inspect(Picture& picture, const Listing& listing, Inspection inspection, PixelBudget& budget) {
  std::vector<Finding> findings;
  const auto attempt = [&](Fault fault, const std::string& path, auto&& action) {
    try {
      action();
    } catch (const Error& e) {
      findings.push_back({fault, path, e.problem()});
    }
  };
  attempt(Fault::kPicture, picture.path, [&] {
    const MappedFile file(picture.path);
    picture.hash = hash_of(file);
    picture.size = image_size(file.bytes(), picture.path);
    if (inspection == Inspection::kPixels) decode(picture.path, file, picture.size, budget);
  });
  attempt(Fault::kCaption, picture.path, [&] { picture.caption = caption_of(picture.path, listing); });
  picture.mask = mask_of(picture.path, listing.config.mask_folder);
  if (!picture.mask.empty() && findings.empty()) {
    attempt(Fault::kMask, picture.mask, [&] {
      inspect_mask(picture);
      if (inspection == Inspection::kPixels) decode(picture.mask, MappedFile(picture.mask), picture.size, budget);
    });
  }
  return findings;
}

void find_shared_names(const std::vector<fs::path>& pictures, std::vector<Finding>& findings) {
  std::map<std::string, std::string> stems;
  for (const fs::path& path : pictures) {
    const auto [first, added] = stems.emplace(path.stem().string(), path.filename().string());
    if (added) continue;
    findings.push_back({Fault::kSharedName,
                        path.string(),
                        {path.parent_path().string(),
                         fmt::format("'{}' and '{}', which share the caption '{}.txt'", first->second,
                                     path.filename().string(), first->first),
                         "a name of its own for every picture", "rename one of them"}});
  }
}

void find_duplicates(Dataset& dataset) {
  std::map<std::string_view, const Picture*> known;
  for (const Picture& picture : dataset.pictures) {
    const auto [first, added] = known.emplace(picture.hash, &picture);
    if (added) continue;
    dataset.findings.push_back({Fault::kDuplicate,
                                picture.path,
                                {picture.path, "the same file as " + first->second->path, "different pictures", ""}});
  }
}

// The resolutions for which no bucket was found.
void require_use(const DataConfig& data, Dataset& dataset) {
  if (dataset.pictures.empty()) return;
  const auto report = [&](const std::string& resolution) {
    dataset.findings.push_back({Fault::kResolution,
                                "",
                                {"field 'data.resolution': " + resolution, "no picture that is large enough",
                                 "at least one that covers a bucket of it",
                                 "lower data.resolution, or allow enlarging with \"upscale\": true"}});
  };
  if (data.fixed_size[0] > 0 && dataset.samples.empty()) {
    report(fmt::format("{}x{}", data.fixed_size[0], data.fixed_size[1]));
  }
  for (const std::int64_t resolution : data.resolution) {
    DataConfig one = data;
    one.resolution = {resolution};
    const bool used = std::any_of(dataset.pictures.begin(), dataset.pictures.end(),
                                  [&](const Picture& picture) { return !buckets_of(one, picture.size).empty(); });
    if (!used) report(std::to_string(resolution));
  }
}

void find_samples(const DataConfig& data, Dataset& dataset) {
  const std::size_t wanted = std::max<std::size_t>(1, data.resolution.size());
  std::vector<std::pair<std::uint32_t, Bucket>> uses;
  for (std::uint32_t i = 0; i < dataset.pictures.size(); ++i) {
    const Picture& picture = dataset.pictures[i];
    const std::vector<Bucket> buckets = buckets_of(data, picture.size);
    for (const Bucket& bucket : buckets) uses.emplace_back(i, bucket);
    if (buckets.size() < wanted && !data.upscale) {
      dataset.findings.push_back({Fault::kTooSmall,
                                  picture.path,
                                  {picture.path, fmt::format("{} x {} pixels", picture.size.width, picture.size.height),
                                   fmt::format("enough for {} more of {} resolutions", wanted - buckets.size(), wanted),
                                   "it is left out there; \"upscale\": true enlarges it"}});
    }
    for (const Bucket& bucket : buckets) {
      if (std::find(dataset.buckets.begin(), dataset.buckets.end(), bucket) == dataset.buckets.end()) {
        dataset.buckets.push_back(bucket);
      }
    }
  }
  std::sort(dataset.buckets.begin(), dataset.buckets.end(), [](const Bucket& a, const Bucket& b) {
    return std::pair(a.width * a.height, a.width) < std::pair(b.width * b.height, b.width);
  });
  for (const auto& [picture, bucket] : uses) {
    const auto place = std::find(dataset.buckets.begin(), dataset.buckets.end(), bucket) - dataset.buckets.begin();
    dataset.samples.push_back({picture, static_cast<std::uint32_t>(place)});
  }
  require_use(data, dataset);
}

std::vector<float> token_weights(const Image& mask, const Bucket& bucket, double floor, const std::string& name) {
  const Image small = resize_and_crop(mask, static_cast<int>(bucket.width), static_cast<int>(bucket.height));
  const std::int64_t cols = bucket.width / kTokenPixels;
  std::vector<double> sums(static_cast<std::size_t>(cols * (bucket.height / kTokenPixels)));
  for (std::size_t i = 0; i < small.rgb.size(); ++i) {
    const auto pixel = static_cast<std::int64_t>(i / 3);
    const std::int64_t row = pixel / bucket.width / kTokenPixels;
    sums[static_cast<std::size_t>(row * cols + pixel % bucket.width / kTokenPixels)] += small.rgb[i];
  }
  double total = 0.0;
  for (double& sum : sums) {
    sum = floor + (1.0 - floor) * sum / (3.0 * 255.0 * kTokenPixels * kTokenPixels);
    total += sum;
  }
  if (!(total > 0.0)) {
    throw FormatError({name, "a mask that is black in the whole crop", "something to learn from",
                       "take the picture away, or set data.mask_floor"});
  }
  std::vector<float> weights;
  weights.reserve(sums.size());
  for (const double sum : sums) weights.push_back(static_cast<float>(sum * static_cast<double>(sums.size()) / total));
  return weights;
}

Image grey_image(int width, int height, const std::vector<std::uint8_t>& plane) {
  Image image{width, height, {}, {}};
  for (const std::uint8_t value : plane) image.rgb.insert(image.rgb.end(), 3, value);
  return image;
}

// Decodes a file that still has the hash it was inspected with.
Image decode_inspected(const std::string& path, const std::string& hash, Transparency transparency) {
  const MappedFile file(path);
  if (hash_of(file) != hash) {
    throw FormatError({path, "another content than when the run began", "a file that does not change",
                       "start again when all files are in place"});
  }
  Image image = decode_image(file.bytes(), path, transparency);
  file.check_whole();
  return image;
}

}  // namespace

Dataset inspect_dataset(const DataConfig& data, int threads, Inspection inspection) {
  Dataset dataset;
  std::vector<Listing> listings;
  for (const FolderConfig& folder : data.folders) {
    const std::vector<fs::path> paths = list_pictures(folder.folder, dataset.findings);
    listings.push_back({folder, caption_table(folder.folder, dataset.findings)});
    find_shared_names(paths, dataset.findings);
    for (const fs::path& path : paths) {
      dataset.pictures.push_back({.path = path.string(), .folder = static_cast<std::uint32_t>(listings.size() - 1)});
    }
  }
  PixelBudget budget;
  std::vector<std::vector<Finding>> found(dataset.pictures.size());
  ThreadPool pool(threads);
  pool.parallel_for(static_cast<std::int64_t>(found.size()), [&](std::int64_t i, int) {
    const auto index = static_cast<std::size_t>(i);
    Picture& picture = dataset.pictures[index];
    found[index] = inspect(picture, listings[picture.folder], inspection, budget);
  });
  std::vector<Picture> sound;
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (found[i].empty()) sound.push_back(std::move(dataset.pictures[i]));
    std::move(found[i].begin(), found[i].end(), std::back_inserter(dataset.findings));
  }
  dataset.pictures = std::move(sound);
  find_duplicates(dataset);
  find_samples(data, dataset);
  return dataset;
}

void require_trainable(const Dataset& dataset) {
  const auto prevents = [](const Finding& finding) { return prevents_training(finding.fault); };
  const auto first = std::find_if(dataset.findings.begin(), dataset.findings.end(), prevents);
  if (first == dataset.findings.end()) return;
  const auto others = std::count_if(dataset.findings.begin(), dataset.findings.end(), prevents) - 1;
  Problem problem = first->problem;
  if (others > 0) {
    if (!problem.advice.empty()) problem.advice += "; ";
    problem.advice += fmt::format("squareq-train CONFIG --check-data lists this and {} more", others);
  }
  throw FormatError(problem);
}

SamplePixels load_sample(const Picture& picture, const FolderConfig& folder, const Bucket& bucket,
                         PixelBudget& budget) {
  const PixelBudget::Share share(budget, std::int64_t{picture.size.width} * picture.size.height);
  SamplePixels sample;
  const Image image =
      decode_inspected(picture.path, picture.hash, folder.alpha_mask ? Transparency::kKept : Transparency::kOnWhite);
  sample.image = resize_and_crop(image, static_cast<int>(bucket.width), static_cast<int>(bucket.height));
  if (!picture.mask.empty()) {
    const Image mask = decode_inspected(picture.mask, picture.mask_hash, Transparency::kOnWhite);
    sample.weights = token_weights(mask, bucket, folder.mask_floor, picture.mask);
  } else if (folder.alpha_mask && !image.alpha.empty()) {
    sample.weights =
        token_weights(grey_image(image.width, image.height, image.alpha), bucket, folder.mask_floor, picture.path);
  }
  return sample;
}

}  // namespace squareq
