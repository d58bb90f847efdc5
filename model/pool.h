// Short-lived buffers out of one region: taken, given back, and used again by later ones. Code that takes from a Pool
// is run twice, like a layout with a Carver: without memory, to measure the peak, and with it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <map>
#include <stdexcept>
#include <utility>

#include "kernels/base/view.h"

namespace squareq {

class Pool {
 public:
  // Ownership of a buffer: it goes back to the pool, which must outlive it, with its lease.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), view_(other.view_), at_(other.at_) {}
    Lease& operator=(Lease&& other) noexcept {
      std::swap(pool_, other.pool_);
      std::swap(view_, other.view_);
      std::swap(at_, other.at_);
      other.release();
      return *this;
    }
    ~Lease() { release(); }

    const View& view() const { return view_; }
    void release() {
      if (pool_ != nullptr) pool_->taken_.erase(at_);
      pool_ = nullptr;
    }

   private:
    friend class Pool;
    Lease(Pool* pool, View view, std::size_t at) : pool_(pool), view_(view), at_(at) {}

    Pool* pool_ = nullptr;
    View view_;
    std::size_t at_ = 0;
  };

  Pool() = default;  // measures
  explicit Pool(View region) : memory_(region.data), size_(region.bytes()) {}
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // A buffer in the first gap that is wide enough; null while measuring.
  Lease take(DType dtype, std::int64_t batch, std::int64_t rows, std::int64_t cols) {
    View view(nullptr, dtype, batch, rows, cols);
    const std::size_t bytes = (view.bytes() + kAlignment - 1) / kAlignment * kAlignment;
    std::size_t at = 0;
    for (const auto& [begin, end] : taken_) {
      if (begin - at >= bytes) break;
      at = end;
    }
    peak_ = std::max(peak_, at + bytes);
    if (memory_ != nullptr) {
      if (at + bytes > size_) throw std::logic_error("Pool: region is smaller than its measured peak");
      view.data = memory_ + at;
    }
    taken_.emplace(at, at + bytes);
    return {this, view, at};
  }

  std::size_t peak() const { return peak_; }  // bytes

 private:
  static constexpr std::size_t kAlignment = 256;

  std::byte* memory_ = nullptr;
  std::size_t size_ = 0;
  std::size_t peak_ = 0;
  std::map<std::size_t, std::size_t> taken_;  // begin and end of every buffer in use
};

}  // namespace squareq
