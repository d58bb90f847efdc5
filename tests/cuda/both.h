// One list of calls for both backends.
#pragma once

#include "tests/cuda/harness.h"

namespace squareq::test {

// calls(ops, v): v(twin) is the view that belongs to ops.
template <class Calls>
void both(Calls calls) {
  calls(cpu_ops(), [](const Twin& twin) { return twin.cpu; });
  on_gpu([&](Ops& ops) { calls(ops, [](const Twin& twin) { return twin.cuda; }); });
}

// Largest relative L2 error of a result that is computed in float32 from the same numbers as on the CPU, and rounded
// once to its type. Sums of up to 10^4 values in another order differ by a few 10^-6 at most. Each value rounded to
// bfloat16 is off by at most kBf16, so all are together (by some 0.4 of it, where they are many).
inline double rounded_once(DType dtype) { return dtype == DType::BF16 ? kBf16 : 1e-5; }

inline std::vector<std::byte> bytes_of(const View& contiguous) {
  std::vector<std::byte> bytes(contiguous.bytes());
  gpu()->download(contiguous, bytes.data());
  return bytes;
}

}  // namespace squareq::test
