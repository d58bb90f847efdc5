#include "engine/data_order.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "engine/buckets.h"
#include "engine/captions.h"
#include "tests/catch.h"

using namespace squareq;

namespace {

std::vector<std::uint32_t> samples_of(const DrawnBatch& batch) {
  std::vector<std::uint32_t> samples;
  for (const Draw& draw : batch.draws) samples.push_back(draw.sample);
  return samples;
}

// The first `count` samples of a data set in one bucket.
std::vector<std::uint32_t> order(std::uint64_t seed, std::uint64_t begin, std::uint32_t samples, std::uint32_t count) {
  DataOrder drawn(seed, 1, std::vector<DrawnSample>(samples));
  std::vector<std::uint32_t> result;
  for (std::uint64_t i = begin; i < begin + count; ++i) result.push_back(drawn.batch(i).draws.at(0).sample);
  return result;
}

const std::vector<DrawnSample> kMixed{{.bucket = 1, .repeats = 3}, {.bucket = 0}, {.bucket = 1}, {.bucket = 2},
                                      {.bucket = 0, .repeats = 2}, {.bucket = 1}};

}  // namespace

TEST_CASE("data order: one bucket is walked in the documented order") {  // numbers from a Python version of the rules
  CHECK(order(42, 0, 16, 16) == std::vector<std::uint32_t>{9, 11, 4, 13, 6, 15, 3, 5, 1, 8, 14, 10, 2, 12, 0, 7});
  CHECK(order(42, 16, 16, 16) == std::vector<std::uint32_t>{15, 14, 0, 1, 4, 12, 9, 13, 11, 7, 10, 8, 6, 2, 5, 3});
  CHECK(order(UINT64_MAX, 35, 5, 5) == std::vector<std::uint32_t>{1, 4, 2, 3, 0});
}

TEST_CASE("data order: a batch is from one bucket, and every sample comes as often as it repeats") {
  for (const std::int64_t batch_size : {1, 2, 3, 8}) {
    DataOrder order(5, batch_size, kMixed);
    CHECK(order.entries() == 9);
    std::map<std::uint32_t, double> drawn;
    const std::uint64_t batches = 9 * 40;  // 40 batch_size epochs
    for (std::uint64_t i = 0; i < batches; ++i) {
      const DrawnBatch batch = order.batch(i);
      CHECK(batch.draws.size() == static_cast<std::size_t>(batch_size));
      for (const Draw& draw : batch.draws) {
        CHECK(kMixed[draw.sample].bucket == batch.bucket);
        drawn[draw.sample] += 1.0 / static_cast<double>(40 * batch_size);
      }
    }
    for (std::uint32_t i = 0; i < kMixed.size(); ++i) CHECK(std::fabs(drawn[i] - kMixed[i].repeats) <= 1e-9);
  }
}

TEST_CASE("data order: any batch can be asked for at once") {
  DataOrder walked(7, 2, kMixed);
  std::vector<DrawnBatch> all;
  for (std::uint64_t i = 0; i < 60; ++i) all.push_back(walked.batch(i));
  for (const std::size_t i : {59U, 3U, 17U, 58U, 0U}) {
    DataOrder fresh(7, 2, kMixed);
    const DrawnBatch batch = fresh.batch(i);
    CHECK(batch.bucket == all[i].bucket);
    CHECK(samples_of(batch) == samples_of(all[i]));
    CHECK(samples_of(walked.batch(i)) == samples_of(all[i]));
  }
  DataOrder other(8, 2, kMixed);
  std::vector<DrawnBatch> others;
  for (std::uint64_t i = 0; i < 60; ++i) others.push_back(other.batch(i));
  CHECK(std::count_if(all.begin(), all.end(), [&](const DrawnBatch& batch) {
          return samples_of(batch) == samples_of(others[static_cast<std::size_t>(&batch - all.data())]);
        }) < 50);
  CHECK(DataOrder(7, 2, kMixed).batch(std::uint64_t{1} << 40).draws.size() == 2);  // far, without walking there
}

TEST_CASE("data order: a batch larger than its bucket takes from several permutations") {
  DataOrder order(1, 8, {{.bucket = 0}, {.bucket = 0}, {.bucket = 0}});
  for (std::uint64_t i = 0; i < 3; ++i) {
    std::vector<std::uint32_t> samples = samples_of(order.batch(i));
    for (std::uint32_t s = 0; s < 3; ++s) CHECK(std::count(samples.begin(), samples.end(), s) >= 2);
  }
}

TEST_CASE("data order: captions and mirroring are drawn with their chances") {
  DataOrder order(3, 4, {{.captions = 3, .caption_dropout = 0.25, .flip = true}});
  std::map<std::uint32_t, int> captions;
  int flips = 0;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    for (const Draw& draw : order.batch(i).draws) {
      ++captions[draw.caption];
      flips += draw.flip ? 1 : 0;
    }
  }
  CHECK(std::abs(flips - 2000) < 160);  // five standard deviations
  CHECK(std::abs(captions[3] - 1000) < 140);
  for (std::uint32_t caption = 0; caption < 3; ++caption) CHECK(std::abs(captions[caption] - 1000) < 140);
  const DrawnBatch plain = DataOrder(3, 4, {{.captions = 1}}).batch(9);
  for (const Draw& draw : plain.draws) CHECK((draw.caption == 0 && !draw.flip));
}

TEST_CASE("buckets: sizes of about one area, and the nearest shape") {
  const std::vector<Bucket> buckets = make_buckets(512, 64);
  const std::vector<Bucket> expected{{256, 1024}, {320, 768}, {384, 640}, {448, 576}, {512, 512},
                                     {576, 448},  {640, 384}, {704, 320}, {768, 320}, {832, 256},
                                     {896, 256},  {960, 256}, {1024, 256}};
  CHECK(buckets == expected);
  CHECK(nearest_bucket(buckets, {3000, 3000}) == Bucket{512, 512});
  CHECK(nearest_bucket(buckets, {4000, 3000}) == Bucket{576, 448});
  CHECK(nearest_bucket(buckets, {1920, 1080}) == Bucket{640, 384});
  CHECK(nearest_bucket(buckets, {1, 8000}) == Bucket{256, 1024});
  CHECK(nearest_bucket({{64, 32}, {32, 64}}, {100, 100}) == Bucket{64, 32});      // equally near: the wider one
  CHECK(nearest_bucket({{64, 64}, {128, 128}}, {100, 100}) == Bucket{128, 128});  // the larger one
}

TEST_CASE("captions: tags, trigger word, prefix and suffix") {
  FolderConfig folder;
  const auto texts = [&](const std::string& caption) { return caption_texts(folder, caption, 42, 7); };
  CHECK(texts("a,  b ,c") == std::vector<std::string>{"a,  b ,c"});  // untouched
  folder.trigger = "sks";
  CHECK(texts("a photo") == std::vector<std::string>{"sks, a photo"});
  CHECK(texts("a [trigger] and [trigger]") == std::vector<std::string>{"a sks and sks"});
  CHECK(texts("photo of sks") == std::vector<std::string>{"photo of sks"});
  CHECK(texts("") == std::vector<std::string>{"sks"});
  folder.prefix = "old ";
  folder.suffix = ", film";
  CHECK(texts("a photo") == std::vector<std::string>{"old sks, a photo, film"});
  folder.regularisation = true;
  CHECK(texts("a photo") == std::vector<std::string>{"old a photo, film"});

  FolderConfig tags;
  tags.tag_orders = 8;
  tags.keep_tags = 2;
  const std::vector<std::string> orders = caption_texts(tags, " one, two ,three,four,, five", 42, 7);
  REQUIRE(orders.size() == 8);
  std::map<std::string, int> different;
  for (const std::string& text : orders) {
    ++different[text];
    CHECK(text.starts_with("one, two, "));
    CHECK(text.size() == std::string("one, two, three, four, five").size());
  }
  CHECK(different.size() >= 3);
  CHECK(different.size() <= 6);
  CHECK(caption_texts(tags, "one, two, three, four, five", 42, 7) == orders);
  CHECK(caption_texts(tags, "one, two, three, four, five", 43, 7) != orders);
  CHECK(caption_texts(tags, "", 42, 7) == std::vector<std::string>(8));
  tags.keep_tags = 100;
  CHECK(caption_texts(tags, "b,a", 42, 7)[5] == "b, a");
}
