#include "engine/dataset.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "kernels/base/thread_pool.h"
#include "tests/catch.h"
#include "tests/engine/picture_folder.h"

using namespace squareq;
using squareq::test::contains;
using squareq::test::message_of;
using squareq::test::PictureFolder;
using squareq::test::write_file;

namespace {

namespace fs = std::filesystem;

// The messages of one kind of finding.
std::vector<std::string> messages(const Dataset& dataset, Fault fault) {
  std::vector<std::string> found;
  for (const Finding& finding : dataset.findings) {
    if (finding.fault == fault) found.push_back(Error(finding.problem).what());
  }
  return found;
}

// The only finding, which must be of this kind.
std::string only_finding(const DataConfig& data, Fault fault, Inspection inspection = Inspection::kHeaders) {
  const Dataset dataset = inspect_dataset(data, 2, inspection);
  INFO(dataset.findings.size());
  for (const Finding& finding : dataset.findings) UNSCOPED_INFO(Error(finding.problem).what());
  CHECK(dataset.findings.size() == 1);
  CHECK(prevents_training(fault) == !message_of<FormatError>([&] { require_trainable(dataset); }).empty());
  const std::vector<std::string> found = messages(dataset, fault);
  return found.size() == 1 ? found[0] : "";
}

Dataset inspect(const PictureFolder& folder) { return inspect_dataset(folder.data(), 2, Inspection::kPixels); }

// Without the rights of the administrator, whom no permission stops.
class Unprivileged {
 public:
  Unprivileged() : was_(geteuid()) {
    if (was_ == 0 && seteuid(65534) != 0) throw std::runtime_error("seteuid");
  }
  ~Unprivileged() {
    if (was_ == 0 && seteuid(0) != 0) std::abort();
  }
  Unprivileged(const Unprivileged&) = delete;
  Unprivileged& operator=(const Unprivileged&) = delete;

 private:
  uid_t was_;
};

}  // namespace

TEST_CASE("dataset: pictures are listed by name, with captions from wherever they are") {
  const PictureFolder folder;
  folder.add("b.png", 64, 64, "a bus", 1);
  folder.add("a.PNG", 64, 64, "\xEF\xBB\xBF  a caf\xC3\xA9 \r\n", 2);
  folder.add("Z.png", 64, 64, "", 3);
  for (const char* name : {"c.png", "d.png", "e.png"}) {
    folder.add(name, 64, 64, "", name[0]);
    fs::remove(fs::path(folder.file(name)).replace_extension(".txt"));
  }
  write_file(folder.file("c.caption"), "of c");
  write_file(folder.file("b.caption"), "not read, since there is b.txt");
  write_file(folder.file("metadata.jsonl"),
             "{\"file_name\": \"d.png\", \"text\": \" of d \"}\n\n{\"file_name\": \"c.png\", \"text\": \"not read\"}");
  write_file(folder.file(".hidden.png"), "x");
  write_file(folder.file("model.safetensors"), "");
  fs::create_directory(folder.path() + "/sub.png");
  fs::create_directory_symlink(folder.path(), folder.path() + "/circle");
  fs::create_directory_symlink(folder.path(), folder.path() + "/circle.png");
  DataConfig data = folder.data();
  data.folders[0].default_caption = "of e";
  const Dataset dataset = inspect_dataset(data, 2, Inspection::kPixels);
  CHECK(dataset.findings.empty());
  std::vector<std::pair<std::string, std::string>> found;
  for (const Picture& picture : dataset.pictures) {
    found.emplace_back(fs::path(picture.path).filename().string(), picture.caption);
  }
  const std::vector<std::pair<std::string, std::string>> expected{{"Z.png", ""},      {"a.PNG", "a caf\xC3\xA9"},
                                                                  {"b.png", "a bus"}, {"c.png", "of c"},
                                                                  {"d.png", "of d"},  {"e.png", "of e"}};
  CHECK(found == expected);
  CHECK(dataset.samples.size() == 6);
}

TEST_CASE("dataset: folders that are missing, empty, unreadable or no folder") {
  const PictureFolder folder;
  DataConfig data = folder.data();
  CHECK(contains(only_finding(data, Fault::kFolder), "found no picture, expected files ending in .png"));
  data.folders[0].folder = folder.file("none");
  CHECK(contains(only_finding(data, Fault::kFolder), folder.file("none")));
  write_file(folder.file("a.txt"), "a caption alone");
  data.folders[0].folder = folder.file("a.txt");
  CHECK(contains(only_finding(data, Fault::kFolder), "expected a readable folder of pictures"));

  const PictureFolder closed;
  closed.add("a.png", 64, 64, "");
  fs::permissions(closed.path(), fs::perms::none);
  {
    const Unprivileged user;
    CHECK(contains(only_finding(closed.data(), Fault::kFolder), "Permission denied"));
  }
  fs::permissions(closed.path(), fs::perms::owner_all);
}

TEST_CASE("dataset: files that are no usable picture are findings, and the others are used") {
  const PictureFolder folder;
  folder.add("good.png", 64, 64, "");
  const auto finding = [&] { return only_finding(folder.data(), Fault::kPicture); };
  write_file(folder.file("bad.txt"), "");

  SECTION("zero bytes") {
    write_file(folder.file("bad.png"), "");
    CHECK(contains(finding(), folder.file("bad.png") + ": found an empty file"));
  }
  SECTION("truncated") {
    const std::string whole = test::read_file(folder.file("good.png"));
    write_file(folder.file("bad.png"), whole.substr(0, whole.size() / 2));
    CHECK(contains(finding(), "bad.png: found a PNG file that ends too early"));
  }
  SECTION("truncated, of every format") {
    for (const char* name : {"corners.jpg", "corners.webp", "corners.bmp"}) {
      const std::string whole = test::read_file(std::string(TEST_DATA) + "/images/" + name);
      const std::string bad = folder.file("bad" + fs::path(name).extension().string());
      write_file(bad, whole.substr(0, whole.size() - 4));
      CHECK(contains(finding(), bad));
      fs::remove(bad);
    }
  }
  SECTION("whole to the eye of the header, but not its pixels") {
    std::string bytes = test::read_file(std::string(TEST_DATA) + "/images/corners.jpg");
    for (std::size_t at = bytes.find("\xFF\xDA") + 14; at + 2 < bytes.size(); ++at) bytes[at] = '\x55';
    write_file(folder.file("bad.jpg"), bytes);
    CHECK(contains(only_finding(folder.data(), Fault::kPicture, Inspection::kPixels), "cannot be decoded"));
  }
  SECTION("huge") {
    std::string bytes = test::read_file(std::string(TEST_DATA) + "/images/corners.bmp");
    for (const std::size_t at : {18U, 22U}) bytes.replace(at, 4, std::string("\0\0\1\0", 4));  // 65536 x 65536
    write_file(folder.file("bad.bmp"), bytes);
    CHECK(contains(finding(), "65536 x 65536"));
  }
  SECTION("links that lead nowhere, or in a circle") {
    fs::create_symlink("nowhere", folder.file("bad.png"));
    CHECK(contains(finding(), folder.file("bad.png")));
    fs::remove(folder.file("bad.png"));
    fs::create_symlink("bad.png", folder.file("bad.png"));
    CHECK(contains(finding(), folder.file("bad.png")));
  }
  CHECK(inspect(folder).pictures.size() == 1);
}

TEST_CASE("dataset: captions that are missing, too long, not UTF-8 or shared") {
  const PictureFolder folder;
  folder.add("a.png", 64, 64, "");
  const auto finding = [&] { return only_finding(folder.data(), Fault::kCaption); };
  write_file(folder.file("a.txt"), std::string(100'000, 'a'));
  CHECK(contains(finding(), "a.txt: found a caption of 100000 bytes, expected at most 65536 bytes"));
  write_file(folder.file("a.txt"), "caf\xE9");
  CHECK(contains(finding(), "byte 0xE9 at offset 3"));
  fs::remove(folder.file("a.txt"));
  CHECK(contains(finding(), folder.file("a.png") + ": found no caption, expected a.txt, a.caption or an entry"));
  fs::create_directory(folder.file("a.txt"));
  CHECK(contains(finding(), folder.file("a.txt")));
  fs::remove(folder.file("a.txt"));
  fs::create_symlink("a.txt", folder.file("a.txt"));
  CHECK(contains(finding(), folder.file("a.txt")));
  fs::remove(folder.file("a.txt"));
  write_file(folder.file("metadata.jsonl"), "{\"file_name\": \"a.png\", \"text\": \"a\"}\n{\"file_name\": 3}");
  DataConfig data = folder.data();
  data.folders[0].default_caption = "a photo";
  CHECK(contains(only_finding(data, Fault::kCaption), "metadata.jsonl: line 2"));
  fs::remove(folder.file("metadata.jsonl"));

  folder.add("a.png", 64, 64, "");
  fs::copy_file(std::string(TEST_DATA) + "/images/corners.jpg", folder.file("a.jpg"));
  const Dataset dataset = inspect(folder);
  REQUIRE(messages(dataset, Fault::kSharedName).size() == 1);
  CHECK(contains(messages(dataset, Fault::kSharedName)[0], "'a.jpg' and 'a.png', which share the caption 'a.txt'"));
  CHECK(contains(message_of<FormatError>([&] { require_trainable(dataset); }), "share"));
}

TEST_CASE("dataset: the first obstacle is thrown, with the number of others") {
  const PictureFolder folder;
  for (const char* name : {"a.png", "b.png", "c.png"}) write_file(folder.file(name), "");
  const std::string message = message_of<FormatError>([&] { require_trainable(inspect(folder)); });
  CHECK(contains(message, folder.file("a.png")));
  CHECK(contains(message, "and 5 more"));
}

TEST_CASE("dataset: pictures that are too small are left out, and a resolution that none fits is an error") {
  const PictureFolder folder;
  folder.add("large.png", 96, 64, "", 1);
  folder.add("line.png", 1, 8000, "", 2);
  folder.add("small.png", 63, 63, "", 3);
  DataConfig data = folder.data();
  Dataset dataset = inspect_dataset(data, 2, Inspection::kHeaders);
  CHECK(message_of<FormatError>([&] { require_trainable(dataset); }).empty());
  CHECK(messages(dataset, Fault::kTooSmall).size() == 2);
  CHECK(dataset.pictures.size() == 3);
  REQUIRE(dataset.samples.size() == 1);
  CHECK(dataset.buckets == std::vector<Bucket>{{80, 48}});

  data.resolution = {64, 128};
  dataset = inspect_dataset(data, 2, Inspection::kHeaders);
  CHECK(contains(message_of<FormatError>([&] { require_trainable(dataset); }),
                 "field 'data.resolution': 128: found no picture that is large enough"));
  data.resolution.clear();
  data.fixed_size = {96, 80};
  dataset = inspect_dataset(data, 2, Inspection::kHeaders);
  CHECK(contains(message_of<FormatError>([&] { require_trainable(dataset); }), "96x80"));

  data.upscale = true;
  dataset = inspect_dataset(data, 2, Inspection::kHeaders);
  CHECK(dataset.findings.empty());
  CHECK(dataset.samples.size() == 3);
}

TEST_CASE("dataset: several resolutions give a picture several samples") {
  const PictureFolder folder;
  folder.add("a.png", 100, 200, "", 1);
  folder.add("b.png", 130, 130, "", 2);
  DataConfig data = folder.data();
  data.resolution = {64, 96, 128};
  const Dataset dataset = inspect_dataset(data, 2, Inspection::kHeaders);
  const std::vector<Bucket> expected{{48, 80}, {64, 64}, {64, 144}, {96, 96}, {96, 160}, {128, 128}};
  CHECK(dataset.buckets == expected);
  std::vector<std::pair<std::uint32_t, std::uint32_t>> samples;
  for (const Sample& sample : dataset.samples) samples.emplace_back(sample.picture, sample.bucket);
  CHECK(samples ==
        std::vector<std::pair<std::uint32_t, std::uint32_t>>{{0, 0}, {0, 2}, {0, 4}, {1, 1}, {1, 3}, {1, 5}});
}

TEST_CASE("dataset: equal files are reported") {
  const PictureFolder folder;
  folder.add("a.png", 64, 64, "", 1);
  folder.add("b.png", 64, 64, "", 1);
  CHECK(contains(only_finding(folder.data(), Fault::kDuplicate), "the same file as " + folder.file("a.png")));
}

TEST_CASE("dataset: masks weight the tokens") {
  const PictureFolder folder;
  const PictureFolder masks;
  folder.add("a.png", 64, 64, "");
  // Black, and the right quarter of it white.
  Image mask{64, 64, {}, {}};
  for (int i = 0; i < 64 * 64; ++i) mask.rgb.insert(mask.rgb.end(), 3, i % 64 >= 48 ? 255 : 0);
  write_png(masks.file("a.png"), mask);
  DataConfig data = folder.data();
  data.folders[0].mask_folder = masks.path();
  PixelBudget budget;
  const auto weights = [&] {
    const Dataset dataset = inspect_dataset(data, 2, Inspection::kPixels);
    REQUIRE(dataset.findings.empty());
    return load_sample(dataset.pictures.at(0), data.folders[0], dataset.buckets.at(0), budget).weights;
  };
  CHECK(weights() == std::vector<float>{0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4});
  data.folders[0].mask_floor = 0.5;  // 0.5, 0.5, 0.5, 1 with mean 0.625
  CHECK(std::fabs(weights().at(0) - 0.8F) <= 1e-6F);
  CHECK(std::fabs(weights().at(3) - 1.6F) <= 1e-6F);
  data.folders[0].mask_floor = 0.0;

  SECTION("a mask of another size is refused") {
    masks.add("a.png", 64, 63, "");
    CHECK(contains(only_finding(data, Fault::kMask), "found a mask of 64 x 63 pixels, expected 64 x 64"));
  }
  SECTION("and one that is black everywhere") {
    write_png(masks.file("a.png"), {64, 64, std::vector<std::uint8_t>(3 * 64 * 64), {}});
    CHECK(contains(message_of<FormatError>(weights), "black in the whole crop"));
  }
  SECTION("and a picture that changed since") {
    const Dataset dataset = inspect_dataset(data, 2, Inspection::kHeaders);
    folder.add("a.png", 64, 64, "", 5);
    const auto load = [&] { load_sample(dataset.pictures[0], data.folders[0], dataset.buckets[0], budget); };
    CHECK(contains(message_of<FormatError>(load), "another content than when the run began"));
  }
  SECTION("transparency can be the mask") {
    fs::copy_file(std::string(TEST_DATA) + "/images/rgba.webp", folder.file("b.webp"));
    write_file(folder.file("b.txt"), "");
    data.folders[0].mask_folder.clear();
    data.folders[0].alpha_mask = true;
    data.upscale = true;
    data.resolution.clear();
    data.fixed_size = {32, 16};
    const Dataset dataset = inspect_dataset(data, 2, Inspection::kHeaders);
    const SamplePixels sample = load_sample(dataset.pictures.at(1), data.folders[0], dataset.buckets.at(0), budget);
    REQUIRE(sample.weights.size() == 2);  // of 255 and 51, overshoots of the enlargement cut off
    CHECK(sample.weights[0] > 1.5F);
    CHECK(std::fabs(sample.weights[0] + sample.weights[1] - 2.0F) <= 1e-6F);
    CHECK(sample.image.rgb[0] == 200);  // not on white
    CHECK(sample.image.rgb[3 * 31] == 200);
    CHECK(load_sample(dataset.pictures[0], data.folders[0], dataset.buckets[0], budget).weights.empty());
  }
}

TEST_CASE("dataset: pictures that need more than the budget of pixels are decoded one at a time") {
  const PictureFolder folder;
  for (const char* name : {"a.png", "b.png", "c.png", "d.png"}) folder.add(name, 64, 64, "", name[0]);
  const Dataset dataset = inspect(folder);
  PixelBudget budget(1000);
  ThreadPool pool(4);
  pool.parallel_for(4, [&](std::int64_t i, int) {
    load_sample(dataset.pictures[static_cast<std::size_t>(i)], folder.data().folders[0], {64, 64}, budget);
  });
  CHECK(dataset.pictures.size() == 4);
}
