// Limits how many pixels are being decoded at once, so that several huge pictures do not fill the memory.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace squareq {

class PixelBudget {
 public:
  explicit PixelBudget(std::int64_t pixels = std::int64_t{128} << 20) : total_(pixels) {}

  // Holds pixels of the budget; waits until there are enough. What exceeds the whole budget waits to be alone.
  class Share {
   public:
    Share(PixelBudget& budget, std::int64_t pixels) : budget_(budget), pixels_(std::min(pixels, budget.total_)) {
      std::unique_lock lock(budget_.mutex_);
      budget_.freed_.wait(lock, [&] { return budget_.used_ + pixels_ <= budget_.total_; });
      budget_.used_ += pixels_;
    }
    ~Share() {
      {
        const std::lock_guard lock(budget_.mutex_);
        budget_.used_ -= pixels_;
      }
      budget_.freed_.notify_all();
    }
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;

   private:
    PixelBudget& budget_;
    std::int64_t pixels_;
  };

 private:
  std::int64_t total_;
  std::int64_t used_ = 0;
  std::mutex mutex_;
  std::condition_variable freed_;
};

}  // namespace squareq
