#include "tests/cuda/both.h"

namespace squareq::test {

TEST_CASE("CUDA adamw computes what the CPU does over some steps") {
  if (!gpu()) return;
  for (const std::int64_t n : {20011, 4096}) {
    Twin w(1, 1, n, 1, DType::F32), mean(1, 1, n, 2, DType::F32), variance(1, 1, n, 3, DType::F32);
    both([&](Ops& ops, auto v) {
      ops.fill(v(mean), 0.0F);
      ops.fill(v(variance), 0.0F);
    });
    for (std::int64_t step = 1; step <= 4; ++step) {
      const Twin gradients(1, 1, n, 10 + static_cast<std::uint32_t>(step), DType::F32);
      both([&](Ops& ops, auto v) {
        ops.adamw({.parameters = v(w),
                   .gradients = v(gradients),
                   .mean = v(mean),
                   .variance = v(variance),
                   .gradient_scale = 0.25F,
                   .learning_rate = 1e-3F,
                   .beta1 = 0.9F,
                   .beta2 = 0.99F,
                   .epsilon = 1e-6F,
                   .weight_decay = 0.1F,
                   .step = step});
      });
    }
    // A dozen roundings of 6e-8 each in every value.
    for (Twin* result : {&w, &mean, &variance}) CHECK(result->error() <= 1e-6);
  }
  const Twin w(1, 1, 3, 1, DType::F32);
  CHECK_THROWS_AS(
      gpu()->ops().adamw({.parameters = w.cuda, .gradients = w.cuda, .mean = w.cuda, .variance = w.cuda, .step = 0}),
      std::logic_error);
}

TEST_CASE("CUDA adamw with 8-bit moments computes what the CPU does") {
  if (!gpu()) return;
  for (const std::int64_t n : {20011, 4096}) {
    const std::int64_t blocks = (n + kMomentBlock - 1) / kMomentBlock;
    const auto floats_of = [](std::int64_t bytes) { return (bytes + 3) / 4; };
    Twin w(1, 1, n, 1, DType::F32);
    const Twin mean(1, 1, floats_of(n), 2, DType::F32), root(1, 1, floats_of(n), 3, DType::F32);
    Twin mean_scale(1, 1, blocks, 4, DType::F32), root_scale(1, 1, blocks, 5, DType::F32);
    const auto codes = [&](View floats, DType dtype) { return View(floats.data, dtype, 1, 1, n); };
    both([&](Ops& ops, auto v) {
      for (const View& buffer : {v(mean), v(root), v(mean_scale), v(root_scale)}) ops.fill(buffer, 0.0F);
    });
    for (std::int64_t step = 1; step <= 4; ++step) {
      const Twin gradients(1, 1, n, 10 + static_cast<std::uint32_t>(step), DType::F32);
      both([&](Ops& ops, auto v) {
        ops.adamw({.parameters = v(w),
                   .gradients = v(gradients),
                   .mean = codes(v(mean), DType::I8),
                   .variance = codes(v(root), DType::U8),
                   .mean_scale = v(mean_scale),
                   .variance_scale = v(root_scale),
                   .gradient_scale = 0.25F,
                   .learning_rate = 1e-3F,
                   .step = step});
      });
    }
    const std::vector<std::byte> on_gpu = bytes_of(codes(mean.cuda, DType::I8));
    std::int64_t different = 0;
    for (std::int64_t i = 0; i < n; ++i) different += on_gpu[static_cast<std::size_t>(i)] != mean.cpu.data[i] ? 1 : 0;
    // A code differs only where rounding takes a value across the threshold between two of them.
    CHECK(different <= n / 500);
    CHECK(w.error() <= 1e-5);
    CHECK(mean_scale.error() <= 1e-4);
    CHECK(root_scale.error() <= 1e-4);
  }
}

TEST_CASE("CUDA lerp computes what the CPU does") {
  if (!gpu()) return;
  for (const std::int64_t pad : {0, 6}) {
    const Twin x(2, 3, 512, 1, DType::F32, pad);
    Twin y(2, 3, 512, 2, DType::F32, pad);
    both([&](Ops& ops, auto v) { ops.lerp(v(x), 0.25F, v(y)); });
    CHECK(y.error() <= 1e-6);
  }
}

}  // namespace squareq::test
