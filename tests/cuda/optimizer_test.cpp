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

}  // namespace squareq::test
