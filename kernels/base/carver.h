// Cuts views out of one region of memory. A layout function takes a Carver and is run twice: with no memory, to
// measure, and with memory, to carve. So what is planned and what is used cannot drift apart.
#pragma once

#include <algorithm>
#include <cstddef>
#include <stdexcept>

#include "kernels/base/view.h"

namespace squareq {

class Carver {
 public:
  static constexpr std::size_t kAlignment = 256;

  Carver() = default;  // measures
  Carver(std::byte* memory, std::size_t size) : memory_(memory), size_(size) {}

  bool measuring() const { return memory_ == nullptr; }
  std::size_t used() const { return used_; }

  // The next [batch, rows, cols], aligned to kAlignment. While measuring the view has a null pointer but its shape.
  View take(DType dtype, std::int64_t batch, std::int64_t rows, std::int64_t cols) {
    const std::size_t begin = used_;
    View v(measuring() ? nullptr : memory_ + begin, dtype, batch, rows, cols);
    used_ = (begin + v.bytes() + kAlignment - 1) / kAlignment * kAlignment;
    if (!measuring() && used_ > size_) throw std::logic_error("Carver: region is smaller than its measured layout");
    return v;
  }

  // Layouts of which only one is in use at a time: each starts here, and what is taken next follows the largest.
  // layout(i) takes from this carver, for every i in [0, count).
  template <class Layout>
  void take_alternatives(std::size_t count, Layout&& layout) {
    const std::size_t begin = used_;
    std::size_t end = begin;
    for (std::size_t i = 0; i < count; ++i) {
      used_ = begin;
      layout(i);
      end = std::max(end, used_);
    }
    used_ = end;
  }

 private:
  std::byte* memory_ = nullptr;
  std::size_t size_ = 0;
  std::size_t used_ = 0;
};

}  // namespace squareq
